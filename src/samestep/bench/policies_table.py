"""A comparison of sync policies as text."""

from collections.abc import Sequence

from samestep.bench.figures import aligned
from samestep.bench.policy_comparison import Course, PolicyComparison
from samestep.numerics.policy import EXACT
from samestep.plan.prediction import in_ms

HEAD = ("policy", "step, ms", "loss", "to exact", "held out", "moved, MB", "wired, MB", "to target, s", "times faster")


def policies_table(comparison: PolicyComparison) -> str:
    run = [course for course in comparison.courses if course.losses]
    exact = next((course for course in run if course.policy == EXACT), None)
    lines = aligned([HEAD, *(cells(course, exact, comparison) for course in run)])
    lines += [f"{course.policy}: {course.refused}" for course in comparison.courses if course.refused]
    lines += ["", *explanation(comparison, run)]
    return "\n".join(line.rstrip() for line in lines)


def cells(course: Course, exact: Course | None, comparison: PolicyComparison) -> tuple[str, ...]:
    loss, reached = course.smoothed(comparison.window)[-1], course.reaches(comparison.target, comparison.window)
    against = faster = "-"
    if exact is not None:
        against = f"{loss / exact.smoothed(comparison.window)[-1] - 1:+.1%}"
        base = exact.reaches(comparison.target, comparison.window)
        faster = "-" if base is None or not reached else f"{base / reached:.2f}"
    return (
        course.policy,
        in_ms(course.seconds[-1] / len(course.seconds)),
        f"{loss:.4f}",
        against,
        "-" if course.held_out is None else f"{course.held_out:.4f}",
        f"{course.moved / 1e6:.3g}",
        f"{course.wired / 1e6:.3g}",
        "never" if reached is None else f"{reached:.3g}",
        faster,
    )


def explanation(comparison: PolicyComparison, run: Sequence[Course]) -> list[str]:
    steps = max(len(course.losses) for course in run)
    lines = [
        f"{steps} steps each, over the same rows. loss: mean of the last {comparison.window} steps; target: "
        f"{comparison.target:.4f}, the first time that such a mean is no more. Bytes are per step, over all workers."
    ]
    lines += [
        f"{course.policy}: gradients applied at most {course.seen['staleness']:g} updates late, to parameters up to "
        f"{course.seen['divergence']:.2%} from those that they were computed on"
        for course in run
        if "updates" in course.seen
    ]
    local = [course for course in run if "meetings" in course.seen]
    lines += [
        f"{course.policy}: parameters up to {course.seen['divergence']:.2%} from their mean before "
        f"{course.seen['meetings']:g} meetings"
        for course in local
    ]
    if local:
        lines.append(
            "Between meetings a loss is that of logical workers, each with its own parameters on its own rows; what "
            "is held out is asked of their mean."
        )
    return lines

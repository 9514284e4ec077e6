"""Sync policies side by side, as text."""

from collections.abc import Sequence

from samestep.bench.policy_courses import Compared, Course
from samestep.plan.prediction import in_ms
from samestep.sync.policy import EXACT

HEAD = ("policy", "step, ms", "loss", "to exact", "held out", "moved, MB", "wired, MB", "to target, s", "times faster")


def text_of(compared: Compared) -> str:
    run = [course for course in compared.courses if course.losses]
    exact = next((course for course in run if course.policy == EXACT), None)
    rows = [HEAD, *(cells(course, exact, compared) for course in run)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f"{course.policy}: {course.refused}" for course in compared.courses if course.refused]
    lines += ["", *said(compared, run)]
    return "\n".join(line.rstrip() for line in lines)


def cells(course: Course, exact: Course | None, compared: Compared) -> tuple[str, ...]:
    loss, reached = course.smoothed(compared.window)[-1], course.reaches(compared.target, compared.window)
    against = faster = "-"
    if exact is not None:
        against = f"{loss / exact.smoothed(compared.window)[-1] - 1:+.1%}"
        base = exact.reaches(compared.target, compared.window)
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


def said(compared: Compared, run: Sequence[Course]) -> list[str]:
    steps = max(len(course.losses) for course in run)
    lines = [
        f"{steps} steps each, over the same rows. loss: mean of the last {compared.window} steps; target: "
        f"{compared.target:.4f}, the first time that such a mean is no more. Bytes are per step, over all workers."
    ]
    lines += [
        f"{course.policy}: gradients applied at most {course.seen['staleness']:g} updates late, to parameters up to "
        f"{course.seen['divergence']:.2%} from those that they were computed on"
        for course in run
        if "updates" in course.seen
    ]
    apart = [course for course in run if "meetings" in course.seen]
    lines += [
        f"{course.policy}: parameters up to {course.seen['divergence']:.2%} from their mean before "
        f"{course.seen['meetings']:g} meetings"
        for course in apart
    ]
    if apart:
        lines.append(
            "Between meetings a loss is that of logical workers, each with its own parameters on its own rows; what "
            "is held out is asked of their mean."
        )
    return lines

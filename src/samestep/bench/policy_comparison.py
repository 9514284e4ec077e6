"""Comparison of sync policies on the user's job: time of a step, and time until a given loss.

Each policy trains the job from the same start on the same rows. A loss is a mean over the last steps (the window),
since single batches scatter; the target, unless one is given, is the final loss of exact steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean
from typing import Any

from samestep.errors import PlanRefused, Refused
from samestep.job.report import Report
from samestep.launch.failure import Event
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.outcome import Outcome
from samestep.numerics.policy import EXACT, parse_policy

DEFAULT = f"{EXACT} stale(1) local(4) local(16) local(16,outer=nesterov)"
WINDOWS = 20  # windows in a run, when no length is given


@dataclass(frozen=True)
class Course:
    """Training under one policy. refused: why it could not run; everything else is then empty."""

    policy: str
    losses: tuple[float, ...] = ()  # per step
    seconds: tuple[float, ...] = ()  # from the beginning of the first step to the end of each
    held_out: float | None = None
    moved: float = 0.0  # bytes of tensors per step that workers receive, over all workers
    wired: float = 0.0  # those from other hosts, with their framing
    seen: dict[str, float] = field(default_factory=dict)  # measured against the policy's bound: staleness, divergence
    refused: str | None = None

    def smoothed(self, window: int) -> list[float]:
        """Mean loss of the last `window` steps, for each step from number `window` on."""
        return [fmean(self.losses[i - window : i]) for i in range(window, len(self.losses) + 1)]

    def reaches(self, target: float, window: int) -> float | None:
        """Seconds until the mean loss of the last `window` steps is at most `target`; None if it never is."""
        for i, loss in enumerate(self.smoothed(window), window - 1):
            if loss <= target:
                return self.seconds[i]
        return None


@dataclass(frozen=True)
class PolicyComparison:
    """The courses of all policies, in the order in which they were given."""

    courses: tuple[Course, ...]
    target: float
    window: int

    def as_json(self) -> dict[str, Any]:
        return {
            "target_loss": self.target,
            "window": self.window,
            "policies": [
                {
                    **vars(course),
                    "seconds_to_target": course.reaches(self.target, self.window),
                    "loss": course.smoothed(self.window)[-1] if course.losses else None,
                }
                for course in self.courses
            ],
        }


def policies_of(text: str) -> list[str]:
    """Policies in their full spelling, in order. Raises PlanRefused for an unknown one, and for none."""
    found = [str(parse_policy(one) or EXACT) for one in text.split()]
    if not found:
        raise PlanRefused(f"--sync {text!r} names no policy: write for instance --sync 'exact local(16)'")
    return list(dict.fromkeys(found))


def compare_policies(
    request: Request, policies: Sequence[str], target: float | None, window: int | None, say: Callable[[str], None]
) -> PolicyComparison:
    """Train once under every policy. Raises Refused when none can run, and whatever training raises."""
    courses = []
    with Launcher() as launcher:
        for policy in policies:
            say(f"training with {policy}")
            steps = StepTimes()
            try:
                report = launcher.run(request.but(sync=policy), steps)
            except Refused as error:
                courses.append(Course(policy, refused=str(error).splitlines()[0]))
            else:
                courses.append(course_from_report(policy, steps.seconds, report))
    return compare_courses(courses, target, window)


def compare_courses(courses: Sequence[Course], target: float | None, window: int | None) -> PolicyComparison:
    """Hold courses against one target. Raises Refused when none of them ran."""
    run = [course for course in courses if course.losses]
    if not run:
        raise PlanRefused("; ".join(f"{course.policy}: {course.refused}" for course in courses))
    steps = min(len(course.losses) for course in run)
    window = min(steps, window or max(1, steps // WINDOWS))
    if target is None:
        first = next((course for course in run if course.policy == EXACT), run[0])
        target = first.smoothed(window)[-1]
    return PolicyComparison(tuple(courses), target, window)


def course_from_report(policy: str, seconds: Sequence[float], report: Report) -> Course:
    """Training under a policy, from its report. seconds: of each step."""
    steps = max(1, len(report.losses))
    return Course(
        policy,
        tuple(report.losses),
        tuple(accumulate(seconds)),
        report.metrics.get("loss"),
        sum(times.moved for times in report.times) / steps,
        sum(times.wired for times in report.times) / steps,
        dict(report.sync),
    )


class StepTimes:
    """Listener to a run that collects the seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "steps":
            self.seconds += [seconds for _, _, seconds in event["steps"]]

"""Sync policies on the user's job: not only what a step takes, but how long it takes to a given loss.

Each policy trains the job from the same start on the same rows. A loss is a mean over the last steps (the window),
since single batches scatter; the target, unless one is given, is what exact steps come to at the end.
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
from samestep.sync.policy import EXACT, parse_policy

DEFAULT = f"{EXACT} stale(1) local(4) local(16) local(16,outer=nesterov)"
WINDOWS = 20  # windows in a run, when nobody says how long one is


@dataclass(frozen=True)
class Course:
    """How training went under one policy. refused: why it did not; then everything else is empty."""

    policy: str
    losses: tuple[float, ...] = ()  # of every step
    seconds: tuple[float, ...] = ()  # from the beginning of the first step to the end of each
    held_out: float | None = None
    moved: float = 0.0  # bytes of tensors per step that workers got from others, over all workers
    wired: float = 0.0  # those from other hosts, with what frames them
    seen: dict[str, float] = field(default_factory=dict)  # of the policy's bound: staleness, divergence
    refused: str | None = None

    def smoothed(self, window: int) -> list[float]:
        """The mean loss of the `window` steps up to each; from the first step that has as many."""
        return [fmean(self.losses[i - window : i]) for i in range(window, len(self.losses) + 1)]

    def reaches(self, target: float, window: int) -> float | None:
        """Seconds until the mean loss of the last `window` steps is at most `target`; None if it never is."""
        for i, loss in enumerate(self.smoothed(window), window - 1):
            if loss <= target:
                return self.seconds[i]
        return None


@dataclass(frozen=True)
class Compared:
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
    """Spelled out, in order. Raises PlanRefused for one that is not known, and for none."""
    found = [str(parse_policy(one) or EXACT) for one in text.split()]
    if not found:
        raise PlanRefused(f"--sync {text!r} names no policy: write for instance --sync 'exact local(16)'")
    return list(dict.fromkeys(found))


def compare_policies(
    request: Request, policies: Sequence[str], target: float | None, window: int | None, say: Callable[[str], None]
) -> Compared:
    """Train once under every policy. Raises Refused when none of them can be run, and what training raises."""
    courses = []
    with Launcher() as launcher:
        for policy in policies:
            say(f"training with {policy}")
            courses.append(course_of(launcher, request, policy))
    return compared(courses, target, window)


def compared(courses: Sequence[Course], target: float | None, window: int | None) -> Compared:
    """Raises Refused when there is nothing to compare."""
    run = [course for course in courses if course.losses]
    if not run:
        raise PlanRefused("; ".join(f"{course.policy}: {course.refused}" for course in courses))
    steps = min(len(course.losses) for course in run)
    window = min(steps, window or max(1, steps // WINDOWS))
    if target is None:
        first = next((course for course in run if course.policy == EXACT), run[0])
        target = first.smoothed(window)[-1]
    return Compared(tuple(courses), target, window)


def course_of(launcher: Launcher, request: Request, policy: str) -> Course:
    steps = Steps()
    try:
        report = launcher.run(request.but(sync=policy), steps)
    except Refused as error:
        return Course(policy, refused=str(error).splitlines()[0])
    return course(policy, steps.seconds, report)


def course(policy: str, seconds: Sequence[float], report: Report) -> Course:
    """seconds: of every step by itself."""
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


class Steps:
    """Hears how long every step took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "steps":
            self.seconds += [seconds for _, _, seconds in event["steps"]]

"""Outcome of one plan for one model: right, refused, or one of the two failures."""

import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import samestep
from models.plain import PlainRun, difference, distance, plain_run
from samestep.errors import Refused, SamestepError
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

TRAINED = Path(__file__).parent / "trained.py"
PLANS = ("data", "pipeline", "slices")
PATIENCE = 240  # seconds for a run
CLOSE, SAFETY = 1e-4, 16.0  # relative; times the distance that rounding makes


@dataclass(frozen=True)
class Outcome:
    """kind: "ok", "refused", "refused late", "wrong" (a silent difference), "raised" (not samestep's), "no model"."""

    model: str
    plan: str
    kind: str
    text: str = ""
    traceback: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Seen:
    """The number of updates that a run had made."""

    def __init__(self) -> None:
        self.steps, self.failures = 0, list[Any]()

    def see(self, event: Any, outcome: Any) -> None:
        self.steps, self.failures = len(outcome.losses), outcome.failures


def run(launcher: Launcher, name: str, plan: str, workers: int, *, calm: bool = False) -> Report | Outcome:
    """A report, or why there is none."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end within {PATIENCE} s")

    seen, where = Seen(), f"{plan} {workers}"
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        settings = {"name": name, "calm": calm}
        return samestep.train(
            str(TRAINED), settings=settings, plan=plan, workers=workers, launcher=launcher, watcher=seen, stall=PATIENCE
        )
    except Refused as error:
        step = next((failure["step"] for failure in seen.failures if failure["step"]), 0)
        return Outcome(name, where, "refused late" if step or seen.steps else "refused", str(error))
    except (SamestepError, TimeoutError) as error:
        trace = getattr(error, "traceback", "")
        return Outcome(
            name,
            where,
            "raised" if trace or "signal" in str(error) or not isinstance(error, SamestepError) else "refused",
            str(error),
            trace,
        )
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Rounding:
    """How far rounding takes a model: its plain run, and one whose weights began one unit in the last place away."""

    plain: PlainRun
    other: PlainRun

    @staticmethod
    def of(job: samestep.Job) -> "Rounding":
        return Rounding(plain_run(job), plain_run(job, moved=1))

    @property
    def of_losses(self) -> float:
        """Relative; CLOSE, or more where the model itself makes more of it."""
        return max(CLOSE, SAFETY * difference(self.other.losses, self.plain.losses))

    @property
    def of_parameters(self) -> float:
        return max(10 * CLOSE, SAFETY * distance(self.other.last, self.plain))


def judged(launcher: Launcher, name: str, rounding: Rounding, *, drops: bool) -> list[Outcome]:
    """The outcomes of all plans on one and two workers."""
    data = run(launcher, name, "data", 1)
    if isinstance(data, Outcome):
        return [data]
    found = [_against_plain(name, data, rounding), _same_digest(run(launcher, name, "data", 2), data, name, "data 2")]
    found += [_same_digest(run(launcher, name, "pipeline", w), data, name, f"pipeline {w}") for w in (1, 2)]
    still = run(launcher, name, "data", 1, calm=True) if drops else data
    sliced = [run(launcher, name, "slices", w, calm=drops) for w in (1, 2)]
    for workers, report in enumerate(sliced, 1):
        other = sliced[0]
        if isinstance(report, Outcome):
            found.append(report)
        elif isinstance(still, Outcome):
            found.append(Outcome(name, f"slices {workers}", "raised", f"the data plan without dropout: {still.text}"))
        elif (off := difference(report.losses, still.losses)) > rounding.of_losses:
            found.append(
                Outcome(
                    name, f"slices {workers}", "wrong", f"losses {off:.1e} off: {_shown(report)}, not {_shown(still)}"
                )
            )
        elif isinstance(other, Outcome) or other.digest != report.digest:
            found.append(Outcome(name, f"slices {workers}", "wrong", "another digest than on one worker"))
        else:
            found.append(
                Outcome(
                    name, f"slices {workers}", "ok", f"losses {off:.1e} off, rounding explains {rounding.of_losses:.1e}"
                )
            )
    return found


def _against_plain(name: str, data: Report, rounding: Rounding) -> Outcome:
    off = difference(data.losses, rounding.plain.losses)
    away = distance(data.state_dict(), rounding.plain)
    kind = "ok" if off <= rounding.of_losses and away <= rounding.of_parameters else "wrong"
    bounds = f"rounding explains {rounding.of_losses:.1e} and {rounding.of_parameters:.1e}"
    return Outcome(name, "data 1", kind, f"losses {off:.1e}, parameters {away:.1e} off the plain loop; {bounds}")


def _same_digest(report: Report | Outcome, wanted: Report, name: str, where: str) -> Outcome:
    if isinstance(report, Outcome):
        return report
    if report.digest == wanted.digest and list(report.losses) == list(wanted.losses):
        return Outcome(name, where, "ok")
    return Outcome(name, where, "wrong", f"another digest: losses {_shown(report)}, not {_shown(wanted)}")


def _shown(report: Report) -> str:
    return " ".join(f"{loss:.6g}" for loss in report.losses)


def worst_of(kinds: Iterable[str]) -> str:
    """The worst of a plan's outcomes on one and two workers."""
    found = set(kinds)
    return next((kind for kind in ("wrong", "raised", "refused late", "refused", "ok") if kind in found), "not run")

"""Request of a command to a run's leader: plain values that travel as one JSON object."""

import sys
import uuid
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

from samestep.errors import CheckpointRefused, PlanRefused, Refused
from samestep.launch.environment import mkl_mode, physical_cores
from samestep.launch.request.options import (
    DEVICES,
    GROUP_OF,
    GROUPS,
    JobSource,
    NumericsOptions,
    PlanOptions,
    TrainingOptions,
)
from samestep.plan.plan import PRESETS, TRANSPORTS, Plan

NUMBERS = ("workers", "shards", "slices", "threads", "steps", "epochs", "seed", "every", "trace_steps", "audit")


class Mode(StrEnum):
    """Kind of answer that is asked for."""

    TRAIN = "train"
    OUTLINE = "outline"  # the plan that would be run
    PROFILE = "profile"  # what was measured
    CANDIDATES = "candidates"  # every plan that was considered
    TUNE = "tune"  # numerics for this machine
    PLAIN = "plain"  # a plain loop on the whole batch, recorded
    SCALING = "scaling"  # the best plan for many numbers of workers


@dataclass(frozen=True)
class Request:
    """One request to a leader. counts: the numbers of workers for `Mode.SCALING`."""

    run: str  # names this run's temporary folders
    source: JobSource = field(default_factory=JobSource)
    numerics: NumericsOptions = field(default_factory=NumericsOptions)
    planning: PlanOptions = field(default_factory=PlanOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    mode: Mode = Mode.TRAIN
    counts: tuple[int, ...] = ()

    @staticmethod
    def of(run: str, **options: Any) -> "Request":
        """A request from options by name, whichever group they belong to."""
        return Request(run).but(**options)

    @staticmethod
    def made_here(source: JobSource, plan: Plan | str | None, **options: Any) -> "Request":
        """A checked request of this process, with the text of its plan. Raises Refused."""
        name = "plan" if isinstance(plan, Plan) else str(plan or "auto")
        request = Request(
            uuid.uuid4().hex[:12],
            replace(source, folder=str(Path.cwd()), path=tuple(sys.path)),
            NumericsOptions(mkl=mkl_mode()),
            PlanOptions(
                plan=name,
                plan_text=str(plan) if isinstance(plan, Plan) else plan_text(name),
                plan_is_asked=plan is not None,
                default_workers=physical_cores(),
            ),
        ).but(**options)
        request.check()
        return request

    @staticmethod
    def from_json(found: dict[str, Any]) -> "Request":
        """Inverse of `as_json`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        if "settings" in values:
            values["settings"] = {name: _from_json(value) for name, value in values["settings"].items()}
        return Request.of(**values | {"mode": Mode(found["mode"])})

    def as_json(self) -> dict[str, Any]:
        """All fields as one flat object."""
        groups = {name: value for group in GROUPS for name, value in vars(getattr(self, group)).items()}
        groups["settings"] = {name: _as_json(value) for name, value in self.source.settings.items()}
        return {"run": self.run, **groups, "mode": self.mode, "counts": self.counts}

    def but(self, **changes: Any) -> "Request":
        """The same request with some of its options changed."""
        own, groups = {}, dict[str, dict[str, Any]]()
        for name, value in changes.items():
            if name in GROUP_OF:
                groups.setdefault(GROUP_OF[name], {})[name] = value
            else:
                own[name] = value
        return replace(self, **own, **{name: replace(getattr(self, name), **new) for name, new in groups.items()})

    def check(self) -> None:
        """Raise Refused for what can be seen without the job, so that nobody waits for it."""
        values = self.as_json()
        for name in NUMBERS:
            value, least = values[name], 0 if name in ("seed", "audit") else 1
            if value is not None and (type(value) is not int or value < least):
                raise Refused(f"--{name.replace('_', '-')} {value!r}: it must be a whole number of at least {least}")
        self._check_planning()
        self._check_training()

    def _check_planning(self) -> None:
        asked = self.planning
        if asked.transport not in (None, *TRANSPORTS):
            raise Refused(f"--transport {asked.transport!r} is not known: it is one of {', '.join(TRANSPORTS)}")
        if asked.probe and (asked.plan != "auto" or asked.cluster is not None):
            why = f"--plan {asked.plan} names one" if asked.plan != "auto" else "those of --cluster are not run here"
            raise Refused(f"--probe runs the best two plans and takes the faster, and {why}: leave one of them out")
        if asked.rebalance not in (None, "on", "off"):
            raise Refused(f"--rebalance {asked.rebalance!r} is not known: it is on or off")
        if asked.device not in DEVICES:
            raise Refused(f"--device {asked.device!r} is not known: it is one of {', '.join(DEVICES)}")
        if asked.device != "cpu" and asked.memory_limit is not None:
            raise Refused(f"--memory-limit is for the host's memory: leave it or --device {asked.device} out")

    def _check_training(self) -> None:
        asked = self.training
        if not asked.timeout > 0:
            raise Refused(f"--timeout {asked.timeout!r}: it must be a number of seconds above 0")
        if not 0 <= asked.stall < float("inf"):
            raise Refused(f"--stall {asked.stall!r}: it must be a number of seconds, or 0 to look for no stall")
        if asked.save is not None and (not Path(asked.save).parent.is_dir() or Path(asked.save).is_dir()):
            raise Refused(
                f"--save {asked.save} cannot be written: {Path(asked.save).parent} must be a folder, and FILE no folder"
            )
        if asked.checkpoint is None and (asked.resume or asked.every is not None):
            flag = "--resume" if asked.resume else "--every"
            raise CheckpointRefused(f"{flag} needs to know where the checkpoints are: add --checkpoint DIR")
        if asked.change and not asked.resume:
            raise CheckpointRefused(
                f"--change {','.join(asked.change)} says what may differ from a checkpoint that training goes on from: "
                "add --resume"
            )
        if asked.checkpoint is not None:
            above = next(path for path in (Path(asked.checkpoint), *Path(asked.checkpoint).parents) if path.exists())
            if not above.is_dir():
                raise CheckpointRefused(f"--checkpoint {asked.checkpoint}: {above} is a file; name a folder")


def plan_text(name: str, option: str = "--plan") -> str | None:
    """Text of a plan's file; None for a known plan. Raises PlanRefused when it cannot be read."""
    if name in PRESETS:
        return None
    try:
        return Path(name).read_text()
    except OSError:
        raise PlanRefused(
            f"{option} {name}: neither a known plan ({', '.join(PRESETS)}) nor a file that can be read"
        ) from None
    except UnicodeDecodeError:
        raise PlanRefused(f"{option} {name} is not text; print(report.plan) shows what a plan looks like") from None


PATH = "a path"  # a setting that is one becomes {"a path": text}


def _as_json(setting: Any) -> Any:
    return {PATH: str(setting)} if isinstance(setting, PurePath) else setting


def _from_json(setting: Any) -> Any:
    return Path(setting[PATH]) if isinstance(setting, dict) and set(setting) == {PATH} else setting

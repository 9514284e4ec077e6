"""Identity of a job, by what it makes and by what it does: written to checkpoints, compared when one is resumed.

as it begins    hyperparameters, schedule, settings, data, modules                 `made`
at a save       the schedule's next rates, one shard's loss and gradients          `recorded`
"""

import contextlib
import copy
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from samestep.errors import JobRefused
from samestep.job.job import Job
from samestep.job.schedule_functions import function_values, rates_ahead, values_read
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import Executor
from samestep.state.checkpoint import OF_THE_STATE, Description
from samestep.state.job_traits import Difference, Traits, check_names, differences, renamed, same
from samestep.system.json_values import plain
from samestep.training.data_sample import data_sample
from samestep.training.recorded_shard import compare_shards, recorded_shard

LOOKED_AT = 1024  # steps at which a schedule's functions are looked at, where the job does not give their number
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Origin:
    """Origin of a job. settings: as JSON holds them. file: its hash. computes: whether a worker has the whole
    model, to compute a shard of it."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    computes: bool = True


class JobIdentity(Attendant):
    """One worker's knowledge of its job. Made before the first step and before anything is restored."""

    def __init__(self, job: Job, executor: Executor, origin: Origin) -> None:
        self.job, self.executor, self.origin = job, executor, origin
        self._began = [
            (copy.deepcopy(update.state.hyperparameters()), copy.deepcopy(_state(scheduler)))
            for update, scheduler in executor.optimizers()
        ]
        self._reads = {} if executor.scheduler is None else values_read(executor.scheduler)
        self._structure = structure(executor.model)
        self._made: Traits | None = None

    @property
    def made(self) -> Traits:
        """Traits that the job has made."""
        if self._made is None:
            job, scheduler = self.job, self.executor.scheduler
            groups, state = self._began[0]
            schedule = None
            if scheduler is not None:
                functions = function_values(scheduler, self.job.steps or LOOKED_AT)
                schedule = {
                    "state": plain(state, "the scheduler's state"),
                    "reads": self._reads,
                    "functions": functions,
                }
            self._made = {
                "hyperparameters": [plain(group, "the optimizer's parameter group") for group in groups],
                "schedule": schedule,
                "settings": dict(self.origin.settings),
                "length": {"steps": job.steps, "epochs": job.epochs},
                "file": self.origin.file,
                "data": self._data() if self.executor.transport.rank == 0 else None,
                "structure": self._structure,
            }
        return self._made

    def _data(self) -> Traits | None:
        if self.job.data is None:
            return None
        try:
            columns, rows = data_sample(self.job, self.executor.plan.numerics.shards)
        except Exception as error:  # noqa: BLE001 - the user's data set, which may want its loader workers
            return {"error": f"{type(error).__name__}: {error}"}
        return {"columns": columns, "rows": rows}

    def record(self) -> Traits:
        """Traits of what the job does now. All workers must call it. Raises JobRefused for a schedule that changed."""
        update, scheduler = self.executor.update, self.executor.scheduler
        if scheduler is not None:
            now = values_read(scheduler)
            for name, value in self._reads.items():
                if not same(now.get(name), value):
                    raise JobRefused(
                        f"the schedule reads {name}, which was {value} when the run began and is {now.get(name)} now: "
                        "a run that resumes would begin with the first. Make it a function of the step, or an object "
                        "with __call__, whose attributes are part of the schedule's state"
                    )
        return {
            "ahead": None
            if scheduler is None or self.executor.transport.rank != 0
            else rates_ahead(update.optimizer, scheduler),
            "shard": recorded_shard(self.job, self.executor) if self.origin.computes else None,
        }

    def compare_made(self, description: Description, change: Sequence[str]) -> list[Difference]:
        """Differences of what the job makes, also those that are meant. All workers must call it."""
        there = description.made
        if there is None:
            return []
        here = self._agreed(self.made)
        known = [here["settings"], there["settings"], *here["hyperparameters"], *there["hyperparameters"]]
        more = [name for name in description.fingerprint if name not in OF_THE_STATE]
        check_names(change, [*known, more, ("schedule", "data", "model", "loss")])
        return differences(there, here)

    def compare_done(self, description: Description, *, exactly: bool) -> list[Difference]:
        """Differences of what the job does with the restored state. All workers must call it.

        exactly: the kernels are those of the checkpoint, so that its bits must come again.
        """
        there = description.recorded
        if there is None:
            return []
        here, found = self._agreed(self.record()), []
        if there["ahead"] is not None and here["ahead"] is not None and not same(there["ahead"], here["ahead"]):
            step = next((s for s in there["ahead"] if not same(there["ahead"][s], here["ahead"].get(s))), "1")
            after = f"schedule's rates {step} step{'s' * (step != '1')} later"
            found.append(Difference("schedule", after, there["ahead"][step], here["ahead"].get(step)))
        if there["shard"] is not None and here["shard"] is not None:
            found += compare_shards(there["shard"], here["shard"], exactly=exactly)
        return found

    def _agreed(self, own: Traits) -> Traits:
        """Worker 0's, in all workers."""
        found: Traits = json.loads(self.executor.transport.exchange(json.dumps(own).encode())[0])
        return found

    def adopt(self, found: Sequence[Difference], description: Description) -> bool:
        """Give the optimizers what the job makes in the place of what was restored, where that is meant.

        A schedule is then as if it had been the job's from the first step on. Returns whether anything has changed.
        """
        names = {one.name for one in found}
        if not names & {
            "schedule",
            "scheduler",
            *(key.removeprefix("initial_") for g in self._began[0][0] for key in g),
        }:
            return False
        stored_state = description.scheduler or {}
        steps = stored_state.get("last_epoch", description.step)
        for (update, scheduler), (groups, state) in zip(self.executor.optimizers(), self._began, strict=True):
            optimizer, driven = update.optimizer, set[str]()
            restored = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for group, made in zip(optimizer.param_groups, groups, strict=True):
                group.update(copy.deepcopy(made))
            if scheduler is not None and state is not None:
                scheduler.load_state_dict(copy.deepcopy(state))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that it is stepped before its optimizer
                    for _ in range(steps if isinstance(steps, int) else description.step):
                        scheduler.step()
                driven = {"lr", "initial_lr"} | {
                    key
                    for group, made in zip(optimizer.param_groups, groups, strict=True)
                    for key in made
                    if key in group and repr(group[key]) != repr(made[key])
                }
            for group, before in zip(optimizer.param_groups, restored, strict=True):
                group.update(
                    {k: v for k, v in before.items() if k not in driven and k.removeprefix("initial_") not in names}
                )
        return True

    def told(self, description: Description) -> list[str]:
        """Warnings of what reads otherwise and does the same."""
        there, found = description.made, []
        if there is None:
            return [
                f"the checkpoint has format {description.format}, which does not hold what the job makes and does: "
                "hyperparameters, settings, schedule, data and loss could not be compared"
            ]
        here = self.made
        for part, what in ((there["data"], "data"), ((description.recorded or {}).get("shard"), "recorded shard")):
            if part is not None and "error" in part:
                found.append(f"the checkpoint's {what} cannot be compared ({part['error']})")
        if there["file"] is not None and here["file"] is not None and there["file"] != here["file"]:
            found.append(
                f"the job's file has changed since the checkpoint was written (its hash was {there['file']}, it is "
                f"{here['file']}): what the job makes and does was compared"
            )
        if (text := renamed(there["structure"], here["structure"])) is not None:
            found.append(f"{text}: the recorded shard tells whether that matters")
        return found


def structure(model: nn.Module) -> list[list[str]]:
    """Name, class and own settings of each module."""
    return [[name, type(module).__name__, _own(module)] for name, module in model.named_modules()]


def _own(module: nn.Module) -> str:
    text = "" if module.training else "eval "
    with contextlib.suppress(Exception):  # the user's code
        text += ADDRESS.sub("", module.extra_repr())
    return text.strip()


def _state(scheduler: Any) -> Any:
    return None if scheduler is None or not hasattr(scheduler, "state_dict") else scheduler.state_dict()

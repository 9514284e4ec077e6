"""The profile of a job: looked up, else measured in a forked process, which leaves this one as it was.

A profile lies in the user's cache, under a name made of the layers and of what it stands on; or where
`--profile` says.
"""

import copy
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from samestep.device import instruction_set
from samestep.errors import PlanRefused, SamestepError, TrainingFailed
from samestep.job import Job
from samestep.launch.environment import cache_folder, processor
from samestep.launch.measuring import measure
from samestep.launch.outcome import WorkerError, telling, told
from samestep.launch.probe import forked, read_json, write_json
from samestep.launch.processes import die_with_parent
from samestep.numerics import Numerics
from samestep.parallelize import prepare
from samestep.planner import profile as profiles
from samestep.planner.profile import Ground, Profile
from samestep.survey import survey


def profiled(
    job: Job, model: nn.Module, numerics: Numerics, workers: int, num_slices: int | None, file: str | None, name: str
) -> Profile:
    """workers: that work at once on this machine. num_slices: K, where layers may be sliced.

    Raises PlanRefused when the job cannot be measured: something in it raises, or `file` holds another ground's.
    """
    result = os.memfd_create("samestep-profile")
    child = forked(partial(_profile, job, model, numerics, workers, num_slices, file, name, result))
    os.waitpid(child, 0)
    found = read_json(result)
    if not isinstance(found, str):
        raise refusal(TrainingFailed("the process that measured it ended") if found is None else told(found))
    return Profile.parse(found, "the profile just made")


def refusal(error: SamestepError) -> PlanRefused:
    """Training would fail too: the error says where. Somebody who only plans wants one message."""
    place = error.traceback.strip().splitlines()[-3:-1] if isinstance(error, WorkerError) else []
    where = f" ({' '.join(line.strip() for line in place)})" if place else ""
    return PlanRefused(f"the job cannot be measured: {error}{where}; mend it, or name a plan (--plan data)")


def _profile(
    job: Job, model: nn.Module, numerics: Numerics, workers: int, num_slices: int | None, file: str | None,
    name: str, result: int, parent: int,
) -> None:  # fmt: skip
    die_with_parent(parent)
    torch.set_num_threads(1)
    try:
        chain = survey(job, prepare(job, copy.deepcopy(model)), num_slices)
        ground = ground_of(numerics, min(workers, chain.shards))
        path = cache_folder() / f"{profiles.key(ground, chain)}.json" if file is None else Path(file)
        found = profiles.read(path)
        if found is not None and file is not None:
            found.check(ground, f"--profile {file}")
        if found is None or found.chain != chain:
            found = Profile(ground, chain, measure(job, chain, numerics, model, workers), name)
            profiles.write(found, path)
        write_json(result, found.text())
    except BaseException as error:  # noqa: BLE001 - told to who asked for the profile
        write_json(result, telling(error, None, None))


def ground_of(numerics: Numerics, workers: int) -> Ground:
    machine = f"{processor()}, {instruction_set('cpu')}"
    return Ground(machine, str(torch.__version__), numerics.threads, numerics.shards, numerics.precision, workers)

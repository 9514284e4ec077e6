"""The profile of a job: looked up, else measured in a forked process, which leaves this one as it was.

A profile is kept in the user's cache, under a name made of the layers and of what it depends on; or in the file of
`--profile`.
"""

import contextlib
import copy
import dataclasses
from functools import partial
from pathlib import Path

import torch
from torch import nn

from samestep.errors import PlanRefused, SamestepError, TrainingFailed
from samestep.job.job import Job
from samestep.launch.environment import cache_folder, processor
from samestep.launch.failure import WorkerError
from samestep.launch.probe.children import in_child
from samestep.launch.probe.measure_job import measure
from samestep.numerics.numerics import Numerics
from samestep.parallel.gradients.job_optimizer import implementation
from samestep.planner.cost import profile as profiles
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.cost.profile import Conditions, Profile
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.network_measurements import survey, uncut
from samestep.setup.parallelize import prepare
from samestep.system.device import instruction_set


def profiled(
    job: Job, model: nn.Module, numerics: Numerics, workers: int, num_slices: int | None, file: str | None, name: str
) -> Profile:
    """The profile of a job. workers: that work at once on this machine. num_slices: K, if layers may be sliced.

    Raises PlanRefused when the job cannot be measured: something in it raises; or when `file` holds another job's
    profile, or one of another ground.
    """
    found = in_child(partial(_profile, job, model, numerics, workers, num_slices, file, name))
    if found is None:
        raise refusal(TrainingFailed("the process that measured it ended"))
    if not isinstance(found, str):
        raise PlanRefused(found["message"])
    return Profile.parse(found, "the profile just made")


def refusal(error: BaseException) -> PlanRefused:
    """One message for an error that training would raise too; it names the place."""
    if isinstance(error, PlanRefused):
        return error
    lines = error.traceback.splitlines() if isinstance(error, WorkerError) else []
    places = [line.strip() for line in lines if line.startswith('  File "')]
    where = f" ({places[-1]})" if places else ""
    return PlanRefused(f"the job cannot be measured: {error}{where}; mend it, or name a plan (--plan data)")


def _profile(
    job: Job, model: nn.Module, numerics: Numerics, workers: int, num_slices: int | None, file: str | None, name: str
) -> str:
    torch.set_num_threads(1)
    try:
        prepared = prepare(job, copy.deepcopy(model))
        chain = survey(job, prepared, num_slices)
        ground = ground_of(job, prepared, numerics, min(workers, chain.shards))
        found = read_kept(ground, chain, file)
        if found is None:
            measured = measure_in_parts(job, chain, numerics, model, workers)
            found = Profile(ground, *measured, name, profiles.profile_key(ground, chain))
            keep(found, file)
        return found.text()
    except BaseException as error:  # noqa: BLE001 - a plan without training gets one message
        raise refusal(error) from None


def read_kept(ground: Conditions, chain: Chain, file: str | None) -> Profile | None:
    """A profile that was kept before. Raises PlanRefused if it cannot be read or belongs to another job."""
    key = profiles.profile_key(ground, chain)
    found = profiles.read_profile(cache_folder() / f"{key}.json" if file is None else Path(file))
    if found is not None:
        found.check(ground, key, f"--profile {file}" if file else f"{cache_folder()}/{key}.json")
    return found


def keep(found: Profile, file: str | None) -> None:
    """Keep a profile. Raises PlanRefused when `file` cannot be written; a cache that cannot be written is ignored."""
    if file is None:
        with contextlib.suppress(OSError):
            profiles.write_profile(found, cache_folder() / f"{found.of}.json")
        return
    try:
        profiles.write_profile(found, Path(file))
    except OSError as error:
        raise PlanRefused(f"--profile {file} cannot be written: {error}; name another file") from None


def measure_in_parts(
    job: Job, chain: Chain, numerics: Numerics, model: nn.Module, workers: int
) -> tuple[Chain, MeasuredCosts]:
    """Measure each part, or the whole if parts cannot be run; if that fails too, the failure is the job's own."""
    try:
        return chain, measure(job, chain, numerics, model, workers)
    except SamestepError as error:
        if len(chain.units) == 1 and not chain.regions:
            raise
        whole = dataclasses.replace(chain, units=(uncut(model),), regions=(), why_uncut=str(error))
        return whole, measure(job, whole, numerics, model, workers)


def ground_of(job: Job, prepared: LaidOutModel, numerics: Numerics, workers: int) -> Conditions:
    return Conditions(
        f"{processor()}, {instruction_set('cpu')}",
        str(torch.__version__),
        numerics.threads,
        numerics.shards,
        numerics.precision,
        workers,
        implementation(prepared.optimizer),
        numerics.codec,
        job.clip_grad_norm is not None,
        numerics.sync_batchnorm,
        f"{type(job.data).__name__}, {job.num_loader_workers} loader workers",
    )

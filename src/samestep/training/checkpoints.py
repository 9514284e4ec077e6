"""The whole state of a training: its digest, its checkpoints, its weights. All workers must make each call alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from samestep.state import snapshot
from samestep.state.checkpoint import Description, check_same
from samestep.state.job_traits import not_meant, refuse
from samestep.training.job_identity import JobIdentity
from samestep.training.trainer import Training


def digest(training: Training) -> str:
    with training.during("digest"):
        for attendant in training.attendants:
            attendant.before_state_is_read()
        return snapshot.digest(training.executor, training.step_number)


def save(training: Training, root: Path, run: str) -> None:
    """Write a checkpoint under `root`; `run` names this run's temporary folder."""
    with training.during("save"):
        for attendant in training.attendants:
            attendant.before_state_is_read()
        job = identity_of(training)
        about = {} if job is None else {"recorded": job.record(), "made": job.made}
        snapshot.save(training.executor, training.step_number, root, run, fingerprint(training), **about)
        for attendant in training.attendants:
            attendant.after_save(root)


def restore(training: Training, folder: Path, description: Description, change: Sequence[str] = ()) -> list[str]:
    """Continue from a checkpoint; returns warnings. Raises CheckpointRefused when it is another job's.

    change: names of what is meant to be another than the checkpoint's.
    """
    found, warnings = check_same(description, fingerprint(training), training.plan.numerics.line(), folder)
    job = identity_of(training)
    with training.during("restore"):
        made = [] if job is None else job.compare_made(description, change)
        snapshot.restore(training.executor, folder, description)
        done = [] if job is None else job.compare_done(description, exactly=not warnings)
        warnings += refuse(not_meant([*found, *made, *done], change), folder)
        if job is not None:
            warnings += job.told(description)
        if job is not None and job.adopt([*found, *made, *done], description):
            for attendant in training.attendants:
                attendant.expect_other_rows()
    for attendant in training.attendants:
        attendant.after_restore(training.step_number, folder.parent)
    return warnings


def weights(training: Training) -> dict[str, Tensor]:
    """The trained parameters and buffers, in worker 0; empty in the others."""
    executor = training.executor
    with training.during("weights"):
        executor.share_values(everywhere=True)
    return snapshot.weights(executor) if executor.transport.rank == 0 else {}


def identity_of(training: Training) -> JobIdentity | None:
    return next((one for one in training.attendants if isinstance(one, JobIdentity)), None)


def fingerprint(training: Training) -> dict[str, Any]:
    """Properties of the job that a checkpoint of it must share."""
    job, order = training.job, training.order
    model, update, scheduler = training.executor.model, training.executor.update, training.executor.scheduler
    return {
        "parameters": [f"{n} {p.dtype} {tuple(p.shape)}" for n, p in model.named_parameters()],
        "buffers": [f"{n} {b.dtype} {tuple(b.shape)}" for n, b in model.named_buffers()],
        "optimizer's parameter groups": [", ".join(names) for names in update.group_names],
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "batch size": job.batch_size,
        "number of rows": None if order is None else order.num_rows,
        "shuffle": job.shuffle,
        "drop_last": job.drop_last,
        "clip_grad_norm": job.clip_grad_norm,
    }

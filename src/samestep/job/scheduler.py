"""A job's learning rate scheduler, stepped once per optimizer step."""

from collections.abc import Iterator
from typing import Any

from torch import optim

from samestep.data.row_order import RowOrder
from samestep.errors import JobRefused
from samestep.job.job import Job


def make_scheduler(job: Job, optimizer: optim.Optimizer) -> Any:
    if job.scheduler is None:
        return None
    scheduler = job.scheduler(optimizer)
    if isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau) or not hasattr(scheduler, "step"):
        raise JobRefused(
            f"Job.scheduler made a {type(scheduler).__name__}, which cannot be stepped once per optimizer step: "
            "use a schedule of the step number, for example torch.optim.lr_scheduler.CosineAnnealingLR"
        )
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(scheduler, method, None)):
            raise JobRefused(
                f"Job.scheduler made a {type(scheduler).__name__} without {method}, and its position belongs to "
                "digests and checkpoints: derive it from torch.optim.lr_scheduler.LRScheduler, or give it state_dict() "
                "and load_state_dict(state) with plain numbers"
            )
    return scheduler


LENGTHS = ("T_max", "total_steps", "total_iters", "T_0", "step_size")  # attributes of torch's schedules


def schedule_warning(job: Job, scheduler: Any, order: RowOrder | None) -> str | None:
    """A text where a schedule's length is that of the training in epochs, since it is stepped by the step."""
    if scheduler is None or order is None:
        return None
    steps, per_epoch = job.num_steps(order), order.batches_per_epoch
    epochs = -(-steps // per_epoch)
    if per_epoch < 2 or epochs < 2:
        return None
    for name, length in lengths_of(scheduler):
        if length == epochs:
            return (
                f"{name} of Job.scheduler is {length}, the number of epochs, and a schedule is stepped once per "
                f"optimizer step: it has run its course after {length} of {steps} steps; count in steps, for example "
                f"{steps} ({per_epoch} steps per epoch)"
            )
    return None


def lengths_of(scheduler: Any) -> Iterator[tuple[str, int]]:
    """The lengths that a schedule, or schedules that it is made of, were given, with their names."""
    for name in LENGTHS:
        length = getattr(scheduler, name, None)
        if type(length) is int:
            yield name, length
    milestones = getattr(scheduler, "milestones", None) or getattr(scheduler, "_milestones", None)
    if milestones:
        yield "the last milestone", max(milestones)
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from lengths_of(inner)

"""A job's learning rate scheduler, stepped once per optimizer step."""

from typing import Any

from torch import optim

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

"""A training loop as everybody writes it, around a model that may be wrapped."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from samestep.job.job import Job
from samestep.system.device import precision_of

Total = Callable[[Tensor], Tensor]  # of a weight, over all workers


class Loop:
    """One worker that trains on the rows it is given.

    share: of the batch's rows. workers: whose gradients are averaged; each loss is scaled so that the average of the
    gradients is the gradient of the batch's mean.
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        groups: Sequence[list[nn.Parameter]],
        *,
        share: float = 1.0,
        workers: int = 1,
        total: Total = lambda weight: weight,
    ) -> None:
        self.job, self.model, self.params = job, model, [param for group in groups for param in group]
        self._share, self._scale, self._workers, self._total = share, share * workers, workers, total
        self._updates = [PlainUpdate(job, group) for group in groups]

    @staticmethod
    def plain(job: Job, model: nn.Module) -> "Loop":
        return Loop(job, model, [trainable(model)])

    @property
    def note(self) -> str:
        return next((update.note for update in self._updates if update.note), "")

    def step(self, batch: Any) -> Tensor:
        for update in self._updates:
            update.optimizer.zero_grad()
        with precision_of(self.job.precision, torch.device("cpu")):
            result = self._objective(batch)
        loss, part = self._mean(result)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.job.clip_grad_norm is not None:
            self.clip(self.job.clip_grad_norm)
        for update in self._updates:
            update.step()
        return part

    def clip(self, largest: float) -> None:
        nn.utils.clip_grad_norm_(self.params, largest)

    def _objective(self, batch: Any) -> Any:
        if self.job.forward is not None:
            return self.job.forward(self.model, batch)
        assert self.job.loss is not None
        return self.job.loss(self.model(batch[0]), batch[1])

    def _mean(self, result: Any) -> tuple[Tensor, Tensor]:
        """The objective to go backward from, and this worker's part of the batch's loss."""
        if isinstance(result, tuple | list):  # a sum and its weight
            value, weight = result
            part = value / self._total(torch.as_tensor(float(weight)))
            return part * self._workers, part.detach()
        loss = result if self._scale == 1.0 else result * self._scale
        return loss, result.detach() * self._share


class PlainUpdate:
    """The job's optimizer and scheduler over some of the parameters."""

    def __init__(self, job: Job, params: list[nn.Parameter]) -> None:
        self.optimizer = job.optimizer(params)
        self._scheduler = None if job.scheduler is None else job.scheduler(self.optimizer)
        self._step: Callable[[], None] = self._first_step
        self.note = ""

    def step(self) -> None:
        self._step()
        if self._scheduler is not None:
            self._scheduler.step()

    def _first_step(self) -> None:
        """torch has fused optimizers only for some kinds of tensors, and says so before it changes anything."""
        self._step = self.optimizer.step
        try:
            self.optimizer.step()
        except NotImplementedError:
            if not any(group.get("fused") for group in self.optimizer.param_groups):
                raise
            self._unfuse(self.optimizer)
            self.optimizer.step()

    def _unfuse(self, optimizer: optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=True)
        self.note = f"torch has no fused {type(optimizer).__name__} for DTensors: foreach instead"


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]

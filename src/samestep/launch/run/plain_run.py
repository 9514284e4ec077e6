"""Record the plain step on the whole batch for `samestep verify`: one process, the loop that everybody writes.

Once as it is, then twice perturbed by rounding: every weight by one unit in the last place, up or down at random, and
the rows of each batch in another order. The distance of the perturbed runs is what rounding can do to this job.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from samestep.data.batches import num_rows, rows_of, tensors_in
from samestep.data.rows import as_rows
from samestep.job.job import Job
from samestep.job.training_data import training_rows
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import job_of, threads_of
from samestep.numerics import random_streams
from samestep.numerics.policy import EXACT
from samestep.parallel.gradients.layout import dense, storage_order
from samestep.training.plain_loop import Loop, trainable
from samestep.verification.job.observer import EVALUATED, stretches
from samestep.verification.job.up_to_rounding import is_coupled
from samestep.verification.record import Key, RecordWriter

PERTURBED = 2
COUPLING = 1e-4  # relative slack: a mean of means lies between them, up to rounding


@dataclass(frozen=True)
class PlainFacts:
    """Facts about a job that decide whether its plain step can be compared."""

    draws: bool  # random numbers in forward
    batchnorm: tuple[str, ...]  # layers with statistics over the rows that they are given
    coupled: str | None  # why the loss of a row depends on the other rows
    by_design: str | None  # why the numerics define another step than the plain one


def record_plain(request: Request) -> PlainFacts:
    """Record into the folders plain, perturbed-1 and perturbed-2 of the request's. Raises Refused."""
    root, steps = request.training.record, request.training.steps
    assert root is not None, "a record has a folder"
    assert steps is not None, "a record has a length"
    job, chosen = job_of(request)
    job = dataclasses.replace(job, num_loader_workers=0, callbacks=())
    torch.set_num_threads(threads_of(chosen, request))
    facts = plain_facts(job)
    if facts.by_design is None:
        for number in range(1 + PERTURBED):
            folder = Path(root) / ("plain" if number == 0 else f"perturbed-{number}")
            folder.mkdir(mode=0o700)
            record_steps(job, steps, RecordWriter(folder, 0), number)
    return facts


def plain_facts(job: Job) -> PlainFacts:
    """Find out on half batches what a batch's loss depends on besides its rows and the weights."""
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    batch = next(batches(job))
    half = num_rows(batch) // 2
    halves = [rows_of(batch, part, num_rows(batch)) for part in (range(half), range(half, num_rows(batch)))]
    before = random_streams.leave()
    with torch.enable_grad():  # a loss may need gradients of its own
        losses = [_loss(job, model, part) for part in (*halves, batch)]
    draws = not random_streams.same(before, random_streams.leave())
    norms = tuple(
        name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and not job.sync_batchnorm
    )
    why = None
    if not draws and not norms and half and _is_coupled(job, model, batch, losses):
        why = (
            f"the mean loss of the first {half} rows is {losses[0]:g}, of the others {losses[1]:g}, and of all "
            f"together {losses[2]:g}, which is not between them"
        )
    return PlainFacts(draws, norms, why, _by_design(job))


def _is_coupled(job: Job, model: nn.Module, batch: Any, losses: list[float]) -> bool:
    if job.loss is not None and getattr(job.loss, "reduction", None) == "sum":
        return False  # a plain sum is no mean
    first, second, both = losses
    return is_coupled(first, second, both, COUPLING)


def _by_design(job: Job) -> str | None:
    if job.codec != "none":
        return f"the codec {job.codec} rounds gradients on their way"
    return None if job.sync == EXACT else f"workers agree by {job.sync}"


def _loss(job: Job, model: nn.Module, batch: Any) -> float:
    kept = [(module, name, b) for module in model.modules() for name, b in module._buffers.items() if b is not None]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    found = loss_of(job, model, batch)
    for module, name, buffer in kept:
        module._buffers[name] = buffer
    return found


def loss_of(job: Job, model: nn.Module, batch: Any) -> float:
    """The job's loss: a mean, or a sum divided by its weight."""
    found = job.forward(model, batch) if job.forward is not None else _of_pair(job, model, batch)
    if isinstance(found, tuple | list):
        return float(found[0].detach()) / max(float(found[1]), 1e-30)
    return float(found.detach())


def _of_pair(job: Job, model: nn.Module, batch: Any) -> Any:
    assert job.loss is not None
    return job.loss(model(batch[0]), batch[1])


def batches(job: Job) -> Iterator[Any]:
    """Whole batches in the job's order."""
    rows = training_rows(job)
    return iter(rows.take((epoch, batch) for epoch, batch in job.row_order(rows.num_rows).batches(0)))


class RecordedLoop(Loop):
    """The plain loop, recorded."""

    def __init__(self, job: Job, model: nn.Module, recorder: RecordWriter) -> None:
        super().__init__(job, model, [trainable(model)])
        self._recorder, self._has_gradients = recorder, False
        self._names = {id(param): name for name, param in model.named_parameters()}

    def clip(self, largest: float) -> None:
        self.record_gradients()
        self.record_value("clip norm", "", float(nn.utils.clip_grad_norm_(self.params, largest)))

    def record_value(self, kind: str, name: str, value: float) -> None:
        self._recorder.note(Key(kind, name), value)

    def record_gradients(self) -> None:
        if self._has_gradients:
            return
        self._has_gradients = True
        for param in self.params:
            if param.grad is None:
                self._recorder.note(Key("gradient", self._names[id(param)]), "none")
            else:
                self._stretches("gradient", param, param.grad)

    def take(self, batch: Any, step: int) -> None:
        """Take one step and record it."""
        self._has_gradients = False
        hook = optim.Optimizer.register_step_pre_hook
        handles = [hook(update.optimizer, lambda *_: self.record_gradients()) for update in self._updates]
        loss = self.step(batch)
        for handle in handles:
            handle.remove()
        self.record_value("loss", "of the batch", float(loss))
        for param in self.params:
            self._stretches("parameter", param, param.detach())
        for name, buffer in self.model.named_buffers():
            self._recorder.note(Key("buffer", name), buffer)
        self._recorder.end_step(step)

    def _stretches(self, kind: str, param: nn.Parameter, value: Tensor) -> None:
        own = torch.empty_like(param.detach()).copy_(value)  # in the parameter's order of storage
        for part, stretch, width in stretches(storage_order(own), 0, param.numel()):
            self._recorder.note(Key(kind, self._names[id(param)], part=part), stretch, width)


def record_steps(job: Job, steps: int, recorder: RecordWriter, perturbed: int) -> None:
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    for param in trainable(model):
        param.data = dense(param.data)
    noise = torch.Generator().manual_seed(perturbed)
    if perturbed:
        for param in trainable(model):
            moved = torch.rand(param.shape, generator=noise) < 0.5
            away = torch.where(moved, torch.full_like(param, torch.inf), torch.full_like(param, -torch.inf))
            param.data = torch.nextafter(param.data, away)
    loop = RecordedLoop(job, model, recorder)
    done = 0
    for step, batch in zip(range(steps), batches(job), strict=False):
        random_streams.enter(job.seed, "step", step, 0)
        loop.take(shuffled(batch, noise) if perturbed else batch, step)
        done = step + 1
    if job.evaluate is not None:
        loop.record_value("evaluation", "loss", held_out_loss(job, model, done))
        recorder.end_step(done)


def held_out_loss(job: Job, model: nn.Module, step: int) -> float:
    """Loss over as many rows as the workers evaluate, in one batch."""
    rows = as_rows(job.evaluate, "evaluate", job.seed, job.collate_fn, 0)
    (batch,) = rows.take(iter([(step, range(min(EVALUATED * job.batch_size, rows.num_rows)))]))
    random_streams.enter(job.seed, "evaluate", step, 0)
    model.eval()
    with torch.no_grad():
        return loss_of(job, model, batch)


def shuffled(batch: Any, noise: torch.Generator) -> Any:
    """The same rows in another order."""
    total = num_rows(batch)
    order = torch.randperm(total, generator=noise)
    places = {id(tensor): tensor[order] for _, tensor in tensors_in(batch) if tensor.dim() and len(tensor) == total}
    return torch.utils._pytree.tree_map(
        lambda leaf: places.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf, batch
    )

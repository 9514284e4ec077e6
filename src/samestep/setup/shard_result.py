"""Result of one shard: loss, gradients, buffers, random streams; computed without a trace in the model.

The uncut model computes it as torch does, the cut one segment by segment as a worker of the plan would that had all of
them. Both start from the same weights, buffers and random streams, so they can be compared (`proof.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samestep.job.job import Job
from samestep.job.objective import LossFacts, Objective, ShardLoss
from samestep.numerics import random_streams
from samestep.parallel.cutting.untouched import copy_of_batch, untouched, untouched_buffers
from samestep.parallel.execution.bundles import Bundles
from samestep.parallel.execution.network import Network, OtherWayTaken
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel, entry_segments
from samestep.setup.regions import regions_of
from samestep.system.device import precision_of
from samestep.transport.threads import ThreadFabric

PROBABILITIES = {  # functions that drop elements, and how they are given the probability: by position, and by name
    nn.functional.dropout: (1, "p"),
    nn.functional.dropout1d: (1, "p"),
    nn.functional.dropout2d: (1, "p"),
    nn.functional.dropout3d: (1, "p"),
    nn.functional.alpha_dropout: (1, "p"),
    nn.functional.feature_alpha_dropout: (1, "p"),
    nn.functional.scaled_dot_product_attention: (4, "dropout_p"),
    nn.functional.multi_head_attention_forward: (10, "dropout_p"),
    torch.dropout: (1, "p"),
}


SPREAD = 0.05  # of stand-ins for weights


@dataclass(frozen=True)
class Shard:
    """One shard of a step. stream: the names of its random stream. rows: of which only the weight of a mean depends."""

    batch: Any
    stream: tuple[int | str, ...]
    rows: int = 1


@dataclass(frozen=True)
class ShardResult:
    """Findings of one shard.

    gradients: by parameter; None where it has none. streams: after forward. attributes: plain values that modules have
    afterwards.
    """

    loss: Tensor
    facts: LossFacts
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]
    streams: random_streams.State
    attributes: Mapping[str, Any]


class _WithoutDropout(TorchFunctionMode):
    """Inside, nothing is dropped: slices draw masks of their own, which no uncut layer draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in PROBABILITIES:
            position, name = PROBABILITIES[func]
            if len(args) > position:
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                kwargs[name] = 0.0
        return func(*args, **kwargs)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, parameters have no gradients. What happens to these, modules, buffers and random generators is undone."""
    streams, gradients = random_streams.leave(), [(param, param.grad) for param in model.parameters()]
    with untouched(model):
        for param, _ in gradients:
            param.grad = None
        try:
            yield
        finally:
            for param, grad in gradients:
                param.grad = grad
            random_streams.resume(streams)


@contextmanager
def moved_weights(model: nn.Module) -> Iterator[None]:
    """Inside, every weight is moved up or down by one unit in the last place, to measure what rounding does."""
    generator = torch.Generator().manual_seed(0)
    before = [(param, param.data) for param in model.parameters() if param.is_floating_point()]
    for param, data in before:
        away = torch.where(torch.rand(data.shape, generator=generator) < 0.5, torch.inf, -torch.inf)
        param.data = torch.nextafter(data, away.to(data))
    try:
        yield
    finally:
        for param, data in before:
            param.data = data


@contextmanager
def stand_ins(prepared: LaidOutModel, most: int) -> Iterator[int]:
    """Inside, a model that has no values computes with others. Yields how many of its parameters have them.

    most: bytes. Parameters that do not fit have one value for all elements, and no gradient.
    """
    params, left, fitting = list(prepared.model.parameters()), most, 0
    leaves = [leaf for layer in prepared.sliced.values() for leaf in layer.leaves]
    before = [(param, param.data, param.requires_grad) for param in (*params, *leaves)]
    generator = torch.Generator().manual_seed(0)
    names = {id(param) for _, param, _ in prepared.names}
    for param in params:
        nbytes = param.numel() * param.element_size()
        if param.is_floating_point() and nbytes <= left:
            param.data = torch.empty_like(param).normal_(0, SPREAD, generator=generator)
            left, fitting = left - nbytes, fitting + (id(param) in names)
        else:
            param.data = torch.full((1,), SPREAD, dtype=param.dtype).expand(param.shape)
            param.requires_grad_(False)
    for layer in prepared.sliced.values():
        for part, leaf in zip(layer.parts.values(), layer.leaves, strict=True):
            own = part.of(part.whole.data)
            leaf.data = own.contiguous() if part.whole.requires_grad else own
            leaf.requires_grad_(part.whole.requires_grad)
    try:
        yield fitting
    finally:
        for param, data, requires_grad in before:
            param.data = data
            param.requires_grad_(requires_grad)


@contextmanager
def torchs_own_layers(model: nn.Module) -> Iterator[None]:
    """Inside, every layer has torch's or the user's own forward: none writes gradients to places, or meets shards."""
    found = [vars(module) for module in model.modules()]
    own = [one for one in found if getattr(one.get("forward"), "__module__", "").startswith("samestep.")]
    forwards = [one.pop("forward") for one in own]
    try:
        yield
    finally:
        for attributes, forward in zip(own, forwards, strict=True):
            attributes["forward"] = forward


def by_model(model: nn.Module, objective: Objective, precision: str, shard: Shard) -> ShardResult:
    """The result of a model as it is. Raises what it or the loss raises."""
    with undisturbed(model), torch.enable_grad():
        random_streams.enter(*shard.stream)
        with precision_of(precision, next(model.parameters()).device):
            loss = objective(model, copy_of_batch(shard.batch), shard.rows)
        streams = random_streams.leave()
        if loss.objective.requires_grad:
            objective.seeded(loss, shard.rows).backward()  # type: ignore[no-untyped-call]
        gradients = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
        return ShardResult(
            loss.objective.detach(), loss.facts, gradients, dict(model.named_buffers()), streams, _attributes(model)
        )


@dataclass(frozen=True)
class Repeated:
    """The losses of a shard before and after other forwards, and the modules' attributes that the first one changed."""

    losses: tuple[Tensor, Tensor]
    changed: Sequence[str]


def repeated(model: nn.Module, objective: Objective, precision: str, shard: Shard, others: Sequence[Shard]) -> Repeated:
    """Forward of a shard, of `others`, and of the shard again, which meets what these left on the modules."""
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    losses: list[Tensor] = []
    changed: list[str] = []
    with undisturbed(model):
        for one in (shard, *others, shard):
            random_streams.enter(*one.stream)
            with untouched_buffers(model), precision_of(precision, next(model.parameters()).device):
                losses.append(objective(model, copy_of_batch(one.batch), one.rows).objective.detach())
            changed = changed or [
                f"{name}.{attribute}" if name else attribute
                for name, module in model.named_modules()
                for attribute, value in vars(module).items()
                if value is not before.get(name, {}).get(attribute)
            ]
    return Repeated((losses[0], losses[-1]), changed)


def by_whole_model(
    job: Job, prepared: LaidOutModel, shard: Shard, *, drops: bool = True, moved: bool = False
) -> ShardResult:
    """The result of the uncut model. drops: whether its dropout drops. moved: with weights moved by rounding."""
    model, names = prepared.model, {name for name, _, _ in prepared.names}
    whole = prepared.whole() if prepared.initial is None else nullcontext()
    with whole, moved_weights(model) if moved else nullcontext(), _dropout(drops):
        found = by_model(model, Objective(job.loss, job.forward), job.precision, shard)
    return replace(found, gradients={name: grad for name, grad in found.gradients.items() if name in names})


def by_segments(job: Job, prepared: LaidOutModel, plan: Plan, shard: Shard, *, drops: bool = True) -> ShardResult:
    """The result of the cut model, by one worker that has all stages and slices of `plan`."""
    model, objective, network = prepared.model, Objective(job.loss, job.forward), _network(prepared, plan)
    numbers = range(len(network.structure.segments))
    stage_of = _stages(prepared)
    loss: ShardLoss | None = None
    batch = copy_of_batch(shard.batch)
    with undisturbed(model):
        random_streams.enter(*shard.stream)
        with _dropout(drops), precision_of(job.precision, next(model.parameters()).device):
            for number in numbers:
                if number in network.regions:
                    network.slice_forward(number, range(1), 1, 0)
                else:
                    loss = _through(network, number, batch, shard.rows, objective)
        assert loss is not None, "the last segment is dense"
        streams = random_streams.leave()
        seeded: Tensor | None = objective.seeded(loss, shard.rows)
        gradients: dict[str, Tensor | None] = dict.fromkeys(stage_of)
        for number in reversed(numbers):
            with _dropout(drops):  # torch.utils.checkpoint runs layers again
                if number in network.regions:
                    network.slice_backward(number, range(1))
                else:
                    network.backward(0, number, seeded)
                    seeded = None
                if (0, number) in network.deferred:  # where the plan's order splits backwards
                    network.backward_weight(0, number)
            stage = network.stage_of(number)
            if number == 0 or network.stage_of(number - 1) != stage:
                found = _gradients(prepared)  # a stage's workers keep those of its own parameters only
                gradients |= {name: grad for name, grad in found.items() if stage_of[name] == stage}
        return ShardResult(
            loss.objective.detach(), loss.facts, gradients, dict(model.named_buffers()), streams, _attributes(model)
        )


def _through(network: Network, number: int, batch: Any, rows: int, objective: Objective) -> ShardLoss | None:
    """Forward through a segment; from its beginning once more where a guard turns to another way."""
    modules = list(network.recipe.model.modules())
    while True:
        homes = [(module, name, b) for module in modules for name, b in module._buffers.items() if b is not None]
        copies = {id(buffer): buffer.clone() for _, _, buffer in homes}
        for module, name, buffer in homes:
            module._buffers[name] = copies[id(buffer)]
        try:
            return network.forward(0, number, batch, rows, objective)
        except OtherWayTaken:
            for module, name, buffer in homes:
                module._buffers[name] = buffer


def _network(prepared: LaidOutModel, plan: Plan) -> Network:
    assert prepared.recipe is not None, "a plan with stages has cut the model"
    assert prepared.structure is not None, "a plan with stages has cut the model"
    alone, endpoint = replace(plan.on_one_worker(), order=plan.order), ThreadFabric(1).endpoint(0)
    numbers = range(len(prepared.structure.segments))
    return Network(
        plan=alone,
        transport=endpoint,
        bundles=Bundles(endpoint),
        recipe=prepared.recipe,
        regions=regions_of(prepared, alone, 0, lambda param: lambda: None),
        entries=[()] * len(numbers),
        buffers=[()] * len(numbers),
        recompute_stages=[False] * len(plan.stages),
    )


def _stages(prepared: LaidOutModel) -> dict[str, int]:
    """The stage whose workers keep each parameter's gradient."""
    assert prepared.structure is not None
    segments, whole_of = prepared.structure.segments, {name: name for name, _, _ in prepared.names}
    for layer in prepared.sliced.values():
        names = {id(param): name for name, param, _ in prepared.names}
        whole_of |= {part: names[id(of.whole)] for part, of in layer.parts.items()}
    numbers = zip(prepared.layout.entries, entry_segments(prepared), strict=True)
    return {whole_of[entry.name]: segments[number].stage for entry, number in numbers}


def _gradients(prepared: LaidOutModel) -> dict[str, Tensor | None]:
    """The gradients of all parameters, those of slices put together. They are taken from the parameters."""
    cut = {id(whole): (dim, leaves) for layer in prepared.sliced.values() for whole, dim, leaves in layer.wholes()}
    found: dict[str, Tensor | None] = {}
    for name, param, _ in prepared.names:
        dim, leaves = cut.get(id(param), (0, [param]))
        parts = [_taken(leaf) for leaf in leaves]
        there = [part for part in parts if part is not None]
        found[name] = there[0] if len(parts) == 1 and there else torch.cat(there, dim) if there else None
    return found


def _taken(param: nn.Parameter) -> Tensor | None:
    grad, param.grad = param.grad, None
    return grad


def _attributes(model: nn.Module) -> dict[str, Any]:
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float, bool, str, type(None))
    }


def _dropout(drops: bool) -> AbstractContextManager[Any]:
    return nullcontext() if drops else _WithoutDropout()

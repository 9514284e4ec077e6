"""Proof of a cut on the job itself: one shard, computed by the uncut model and by the cut one, must be the same shard.

    uncut   x -> model -> loss -> backward              }  loss, gradients, buffers, random streams
    cut     x -> segment 0 -> segment 1 -> ... -> back  }  bit for bit; with slices up to measured rounding

A cut assumes much about a job: that what segments use comes from the batch, that nobody reads what a layer leaves
behind, that a layer is in one stage. The job is asked whether it holds: before its first update, and again for every
new record (another shape, another way through forward).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from samestep.errors import JobRefused, PlanRefused, SamestepError
from samestep.job.job import Job
from samestep.job.loss_checks import without_gradient
from samestep.job.objective import Objective
from samestep.job.training_data import first_shards
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, parameters_of
from samestep.parallel.cutting.signature import signature
from samestep.parallel.execution.buffers import same_bits
from samestep.parallel.execution.cut_recipe import Answers
from samestep.parallel.execution.unchanged import Unchanged
from samestep.plan.plan import Plan
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.shard_result import (
    Shard,
    ShardResult,
    by_segments,
    by_whole_model,
    repeated,
    stand_ins,
    torchs_own_layers,
)

SAFETY = 16.0  # times what moving every weight by a unit in the last place changes
LEAST = 1e-6  # relative; a few units in the last place of float32
FITS = 8  # the part of the memory limit that values may take: slices and two sets of gradients are as large
LOOKED_AT = 8  # shards among which one is looked for that has the shapes of the recorded one


@dataclass(frozen=True)
class ShardDifference:
    """The first value in which one way to compute a shard differs from another."""

    kind: str  # loss, buffer, random stream, attribute, gradient
    name: str
    found: str
    wanted: str = ""

    def text(self, other: str) -> str:
        """other: the way that is right."""
        return f"{self.found} {f'where {other} gives {self.wanted}' if self.wanted else f'than {other}'}"


def prove_cut(job: Job, plan: Plan, prepared: LaidOutModel, memory_limit: int | None = None) -> str:
    """Prove a cut before the first update, on a shard other than the recorded one where there is one.

    Returns what could not be proven, empty if nothing. memory_limit: bytes; layers that do not fit compute with one
    value for all their weights, and without gradient. Raises PlanRefused where the cut model computes something else
    than the uncut one, and what the job raises.
    """
    assert prepared.recipe is not None
    shards, recorded = list[Any](), {name for name, _ in prepared.recipe.known}
    for batch in first_shards(job, plan.numerics.shards, LOOKED_AT):
        shards.append(batch)
        if len(shards) > 1 and signature(batch) in recorded:
            break
    number = len(shards) - 1
    if prepared.initial is None:
        others = [Shard(shards[0], (job.seed, "step", 0, 0))]
        check_forward_repeats(job, prepared, Shard(shards[number], (job.seed, "step", 0, number)), others)
        prove_shard(job, plan, prepared, shards[number], number)
        return ""
    assert memory_limit is not None, "only a limit makes a model that has no values"
    with stand_ins(prepared, memory_limit // FITS) as fitting:
        prove_shard(job, plan, prepared, shards[number], number)
    total = len(prepared.names)
    return "" if fitting == total else f"the cut is proven on {fitting} of {total} parameters, as many as fit"


def prove_shard(job: Job, plan: Plan, prepared: LaidOutModel, batch: Any, number: int) -> None:
    """Prove the cut on one batch. Raises PlanRefused."""
    shard = Shard(batch, (job.seed, "step", 0, number))
    drops = not prepared.sliced
    params = dict(prepared.model.named_parameters())
    wanted = by_whole_model(job, prepared, shard, drops=drops)
    check_same_parameters(params, prepared.model)
    if all(gradient is None for gradient in wanted.gradients.values()):
        raise without_gradient(number)
    try:
        found = by_segments(job, prepared, plan, shard, drops=drops)
    except SamestepError:
        raise
    except Exception as error:
        raise refused(
            f"fails where the uncut one does not ({type(error).__name__}: {first_line(error)})", ""
        ) from error
    difference = next(differences(found, wanted, bit_for_bit), None)
    if difference is not None and prepared.sliced:
        moved = by_whole_model(job, prepared, shard, drops=drops, moved=True)
        difference = next(differences(found, wanted, up_to_rounding(wanted, moved)), None)
    if difference is not None:
        raise refused(f"gives {difference.text('the uncut one')}", likely_reason(difference, prepared))


def prove_new_records(job: Job, plan: Plan, prepared: LaidOutModel) -> None:
    """From now on, prove every new record, on the batch that it was made of and on the next one that is like it."""
    recipe = prepared.recipe
    assert recipe is not None
    record = recipe.of
    proofs = {id(cut): (cut, 2) for cut in recipe.known.values()}  # with how often each was proven
    proving: list[bool] = []

    def of(batch: Any, answers: Answers = ()) -> Cut:
        found = record(batch, answers)
        _, times = proofs.get(id(found), (found, 0))
        if times == 2 or proving:
            return found
        proofs[id(found)] = found, times + 1
        proving.append(True)
        try:
            prove_shard(job, plan, prepared, batch, 0)
        finally:
            proving.pop()
        for number in set(proofs) - {id(cut) for cut in recipe.known.values()}:
            del proofs[number]
        return found

    recipe.of = of  # type: ignore[method-assign]


def check_forward_repeats(job: Job, prepared: LaidOutModel, shard: Shard, others: Sequence[Shard]) -> None:
    """Raises JobRefused for a forward that gives another loss once others have run, from the same state."""
    with prepared.whole():
        found = repeated(prepared.model, Objective(job.loss, job.forward), job.precision, shard, others)
    first, second = found.losses
    if same_bits(first, second):
        return
    left = f"it changed {', '.join(found.changed[:3])}" if found.changed else "an attribute, a generator of its own"
    raise JobRefused(
        f"forward gives a loss of {float(first):.9g}, and {float(second):.9g} when it runs again on the same shard "
        f"from the same weights, buffers and random streams: it reads what an earlier forward left behind ({left}), "
        "so that the numbers would depend on who computed which shards; keep it in a buffer, and draw from torch's "
        "default generator"
    )


def check_same_parameters(before: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Raises JobRefused where forward has made or replaced a parameter."""
    now = dict(model.named_parameters())
    name = next((name for name in {**before, **now} if before.get(name) is not now.get(name)), None)
    if name is not None:
        what = "made" if name not in before else "replaced" if name in now else "removed"
        raise JobRefused(
            f"forward has {what} the parameter {name}: every worker would have one of its own, and no optimizer "
            "knows it; make all parameters in the function that makes the model, and leave values to the optimizer"
        )


def prove_layers(job: Job, prepared: LaidOutModel, batches: Mapping[int, Any], step: int) -> None:
    """Prove the layers that samestep computes in its own way against torch's, up to rounding, on the first shard.

    batches: of a worker's shards, by number. Raises JobRefused. What is wrong alike on every worker shows in no digest.
    """
    shard, *others = [Shard(batch, (job.seed, "step", step, number)) for number, batch in batches.items()]
    number, params = next(iter(batches)), dict(prepared.model.named_parameters())
    with Unchanged(params.items()).during_forward():
        try:
            found = by_whole_model(job, prepared, shard)
        except Exception:  # noqa: BLE001 - forward will raise it again, at its own place
            return
    check_same_parameters(params, prepared.model)
    check_forward_repeats(job, prepared, shard, others[:1])
    with torchs_own_layers(prepared.model):
        wanted = by_whole_model(job, prepared, shard)
        if next(differences(found, wanted, up_to_rounding(wanted, wanted)), None) is None:
            return
        moved = by_whole_model(job, prepared, shard, moved=True)
    difference = next(differences(found, wanted, up_to_rounding(wanted, moved)), None)
    if difference is not None:
        raise JobRefused(
            f"samestep's way to compute Linear layers gives {difference.text('torch')} on shard {number} of step "
            f"{step}: a fault of samestep, please report it; layers of a class of your own (class Plain(nn.Linear): "
            "pass) are left to torch"
        )


def refused(what: str, reason: str) -> PlanRefused:
    return PlanRefused(
        f"the model cut as the plan says {what}, on one shard of this job from the same weights, buffers and random "
        f"stream{': ' + reason if reason else ''}. Use --plan data, which leaves the model uncut, or cut elsewhere"
    )


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


# ------------------------------------------------------------------------------------------------- what is compared

Same = Callable[[str, Tensor, Tensor], bool]


def differences(found: ShardResult, wanted: ShardResult, same: Same) -> Iterator[ShardDifference]:
    """Values that differ: the loss, what forward leaves behind, gradients from the first layer on."""
    if not same("loss", found.loss, wanted.loss) or found.facts[1:] != wanted.facts[1:]:
        yield ShardDifference("loss", "", f"a loss of {float(found.loss):.9g}", f"{float(wanted.loss):.9g}")
    for name, buffer in wanted.buffers.items():
        if not same(f"buffer {name}", found.buffers[name], buffer):
            yield ShardDifference("buffer", name, f"another buffer {name}{off_by(found.buffers[name], buffer)}")
    if not random_streams.same(found.streams, wanted.streams):
        yield ShardDifference("random stream", "", "another state of the random generators after forward")
    for name in wanted.attributes.keys() | found.attributes.keys():
        own, value = found.attributes.get(name), wanted.attributes.get(name)
        if own != value:
            yield ShardDifference("attribute", name, f"{name} = {own!r} after forward", repr(value))
    for name, gradient in wanted.gradients.items():
        own = found.gradients[name]
        if own is None or gradient is None:
            if own is not gradient:
                words = ("a", "none") if gradient is None else ("no", "one")
                yield ShardDifference("gradient", name, f"{words[0]} gradient of {name}", words[1])
        elif not same(f"gradient {name}", own, gradient):
            yield ShardDifference("gradient", name, f"another gradient of {name}{off_by(own, gradient)}")


def bit_for_bit(what: str, found: Tensor, wanted: Tensor) -> bool:
    return same_bits(found, wanted)


def up_to_rounding(wanted: ShardResult, moved: ShardResult) -> Same:
    """Whether two tensors differ by no more than rounding explains: `moved` has weights moved by it."""
    spread = {"loss": relative(moved.loss, wanted.loss)}
    spread |= {f"buffer {name}": relative(moved.buffers[name], buffer) for name, buffer in wanted.buffers.items()}
    for name, gradient in wanted.gradients.items():
        other = moved.gradients[name]
        spread[f"gradient {name}"] = 0.0 if other is None or gradient is None else relative(other, gradient)

    def same(what: str, found: Tensor, wanted: Tensor) -> bool:
        return same_bits(found, wanted) or relative(found, wanted) <= SAFETY * max(LEAST, spread[what])

    return same


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of `wanted`; infinite where shapes differ or nothing is to divide by."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    a, b = (tensor.to(torch.complex128 if tensor.is_complex() else torch.float64) for tensor in (found, wanted))
    off, norm = float((a - b).abs().square().sum()) ** 0.5, float(b.abs().square().sum()) ** 0.5
    return 0.0 if off == 0 else off / norm if norm > 0 else float("inf")


def off_by(found: Tensor, wanted: Tensor) -> str:
    off = relative(found, wanted)
    return f" ({off:.1e} off)" if 0 < off < float("inf") else ""


# --------------------------------------------------------------------------------------------------- likely reasons


def likely_reason(difference: ShardDifference, prepared: LaidOutModel) -> str:
    """The likely cause of a difference in the job, and its place; empty where nothing is known."""
    structure, model = prepared.structure, prepared.model
    assert structure is not None
    left = "forward or loss reads what is not passed on from call to call, such as a value left on a module"
    if difference.kind == "loss":
        return constant(structure) or left
    if difference.kind == "buffer":
        return constant(structure) or (
            "its layer runs another number of times (torch.utils.checkpoint runs layers again), or code around the "
            "layers replaces it"
        )
    if difference.kind == "attribute":
        return "code around the layers changes it in every forward, and a cut forward does not run that code"
    if difference.kind == "gradient":
        name = difference.name
        return several_uses(structure, model, name) or hooks(model, name) or constant(structure) or left
    return ""


def constant(structure: Cut) -> str:
    """The first place at which a segment uses a tensor that neither the batch nor the model has; empty if none does."""
    for segment in structure.segments:
        for call in segment.calls:
            for leaf in tree_leaves(call.arguments):
                if isinstance(leaf, Tensor):
                    return (
                        f"{call} at {call.place} uses a tensor of shape {tuple(leaf.shape)} that comes neither from "
                        "the batch nor from the model, and keeps the value of the first batch"
                    )
    return ""


def several_uses(structure: Cut, model: nn.Module, name: str) -> str:
    """The segments that use a parameter, where there are several."""
    params = dict(model.named_parameters(remove_duplicate=False))
    shared = {other for other, param in params.items() if param is params[name]}
    uses = [
        (number, segment.stage, call.place)
        for number, segment in enumerate(structure.segments)
        for call in segment.calls
        if shared.intersection(parameters_of(call, model))
    ]
    if len({number for number, _, _ in uses}) < 2:
        return ""
    where = ", ".join(f"segment {number} of stage {stage} ({place})" for number, stage, place in uses)
    return f"its module is called in {where}, and only one of them keeps its gradient"


def hooks(model: nn.Module, name: str) -> str:
    """The hooks of the modules around a parameter."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"module {'.'.join(parts[:end]) or 'the model'} has hooks, which a cut forward may not call"
    return ""

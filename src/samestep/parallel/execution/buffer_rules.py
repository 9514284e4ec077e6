"""The value of a buffer that shards end differently, where it is not their mean.

power iteration    the first shard's: every shard's vectors approach the same ones, and a mean of directions, which
                   may point both ways, is none of them (spectral norm)
observers          the least and the greatest over all shards
refused            what a mean destroys: directions, whole numbers, extremes of code of somebody's own
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused

Rule = Callable[[Sequence[Tensor]], Tensor]
UNIT = 1e-4  # from the length 1, that of a direction
EXTREME = re.compile(r"(^|_)(abs|a)?(min|max|minimum|maximum)(_|$)")
OBSERVERS = ("torch.ao.quantization", "torch.quantization")


def rule_of(module: nn.Module, local: str, name: str) -> Rule | None:
    """The rule for a buffer of torch's own modules; None: the mean, if it has one (`check_mean`)."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "SpectralNorm"]
    if ("_SpectralNorm" in kinds and local in ("_u", "_v")) or any(
        local in (f"{hook.name}_u", f"{hook.name}_v")  # type: ignore[attr-defined]
        for hook in hooks
    ):
        return lambda shards: shards[0].clone()
    if not type(module).__module__.startswith(OBSERVERS):
        return None
    if "MovingAverageMinMaxObserver" in kinds or "MovingAveragePerChannelMinMaxObserver" in kinds:
        return None
    if local in ("min_val", "max_val") and kinds & {"MinMaxObserver", "PerChannelMinMaxObserver"}:
        return least if local == "min_val" else greatest
    return _refusing(type(module).__name__, name)


def least(shards: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(shards)).amin(0)


def greatest(shards: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(shards)).amax(0)


def _refusing(kind: str, name: str) -> Rule:
    def refuse(shards: Sequence[Tensor]) -> Tensor:
        raise JobRefused(
            f"the buffer {name} of a {kind} ends differently in different shards, and their statistics cannot be "
            "joined: use an observer with a moving average or with the least and the greatest value, or observe "
            "before training"
        )

    return refuse


def check_mean(shards: Sequence[Tensor], name: str) -> None:
    """Raises JobRefused for values of which a mean is no value any more."""
    if reason := _destroyed(shards, name):
        raise JobRefused(
            f"the buffer {name} ends differently in different shards, and {reason}: make it depend on the step or on "
            "the parameters and not on the shard's rows, keep a running mean instead, or keep it out of the buffers"
        )


def _destroyed(shards: Sequence[Tensor], name: str) -> str:
    values = [torch.view_as_real(shard) if shard.is_complex() else shard for shard in shards]
    if all(bool(((value == value.round()) | ~value.isfinite()).all()) for value in values):
        return "it holds whole numbers, which have no mean (a count, a choice, a sign)"
    if values[0].numel() > 1 and any(all(_is_unit(value, dims) for value in values) for dims in (None, -1)):
        return "it holds directions, vectors of length 1, whose mean has another length"
    if EXTREME.search(name.rpartition(".")[2].lower()):
        return "by its name it holds an extreme, whose mean over shards is none"
    return ""


def _is_unit(value: Tensor, dims: int | None) -> bool:
    if dims is not None and (value.dim() < 2 or value.shape[-1] < 2):
        return False
    lengths = value.double().square().sum(() if dims is None else dims).sqrt()
    return bool((lengths - 1).abs().max() < UNIT)

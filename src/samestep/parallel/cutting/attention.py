"""Recognize calls of `nn.MultiheadAttention` that can be computed head by head."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from samestep.parallel.cutting.recording import Call, NamedTensor, Value


@dataclass(frozen=True)
class Attention:
    """A call that is self-attention of one tensor."""

    takes: int
    mask: str | None  # the name of the buffer that is attn_mask
    is_causal: bool


def attention_of(call: Call, shapes: Mapping[int, torch.Size], wanted: Collection[int]) -> Attention | str:
    """The attention that a recorded call computes, or the reason why it cannot be cut by heads.

    wanted: the values that any call takes.
    """
    arguments, options = call.arguments
    given = inspect.signature(nn.MultiheadAttention.forward).bind(None, *arguments, **options)
    given.apply_defaults()
    asked = given.arguments
    query = asked["query"]
    if not (isinstance(query, Value) and query == asked["key"] == asked["value"]):
        return "its queries, keys and values come from different tensors"
    if (ndim := len(shapes[query.index])) != 3:
        return f"its input has {ndim} dimensions, and rows need one of their own: (rows, positions, features)"
    if asked["key_padding_mask"] is not None:
        return "it is given a key_padding_mask, which differs from row to row"
    if any(value in wanted for value in call.makes[1:]):
        return "its attention weights are used, which are a mean over the heads"
    mask = asked["attn_mask"]
    if asked["is_causal"] and not asked["need_weights"]:
        return Attention(query.index, None, True)  # as the layer itself reads it: the mask is a hint
    if isinstance(mask, Value):
        return "its attn_mask is computed in forward: register it as a buffer, or say is_causal and need_weights=False"
    return Attention(query.index, mask.name if isinstance(mask, NamedTensor) else None, False)

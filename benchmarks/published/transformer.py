"""Costs of a GPT-like transformer, from its sizes alone: parameters, FLOPs, bytes kept and bytes exchanged.

    s  sequence       h  hidden        t  tensor-parallel ways
    b  microbatch     l  layers        a  attention heads        V  vocabulary

Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters using Megatron-LM", section
3 and appendix; Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", tables 1
and 2 and appendix A. A multiplication and an addition are two FLOPs; values have two bytes.

Recomputation in backward:

    none         nothing
    selective    the attention core, Q K^T, softmax, dropout and its product with V: 4 b s^2 h FLOPs a layer
    full         the whole layer, from its input
"""

from dataclasses import dataclass

from samestep.errors import PlanRefused

RECOMPUTE = ("none", "selective", "full")
HALF = 2  # bytes per value


@dataclass(frozen=True)
class Transformer:
    """Sizes of the model."""

    hidden: int
    layers: int
    heads: int
    sequence: int
    vocabulary: int = 51200


@dataclass(frozen=True)
class Slicing:
    """Distribution of one layer over workers, and its recomputation in backward.

    ways: of tensor parallelism. sequence: whether dropout and LayerNorm are cut along the sequence between the sliced
    parts. Raises PlanRefused for an unknown `recompute`.
    """

    ways: int = 1
    sequence: bool = False
    recompute: str = "none"

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise PlanRefused(f"recompute = {self.recompute!r} is unknown (known: {', '.join(RECOMPUTE)})")


def layer_parameters(model: Transformer) -> int:
    """12 h^2 + 13 h (Narayanan et al., eq. 2)."""
    return 12 * model.hidden**2 + 13 * model.hidden


def embedding_parameters(model: Transformer) -> int:
    """(V + s) h: words, which are also the weight of the head, and positions."""
    return (model.vocabulary + model.sequence) * model.hidden


def layer_matmul_flops(model: Transformer, rows: int) -> float:
    """Forward FLOPs of a layer's four weights for a microbatch of `rows` sequences: 24 b s h^2."""
    return 24 * rows * model.sequence * model.hidden**2


def attention_flops(model: Transformer, rows: int) -> float:
    """Forward FLOPs of a layer's attention core: 4 b s^2 h."""
    return 4 * rows * model.sequence**2 * model.hidden


def head_flops(model: Transformer, rows: int) -> float:
    """Forward FLOPs of the logits: 2 b s h V."""
    return 2 * rows * model.sequence * model.hidden * model.vocabulary


def layer_flops(model: Transformer, rows: int) -> float:
    """Forward FLOPs of a layer."""
    return layer_matmul_flops(model, rows) + attention_flops(model, rows)


def kept_bytes(model: Transformer, rows: int, slicing: Slicing) -> float:
    """Bytes of activations that a worker keeps per layer and microbatch (Korthikanti et al., table 2)."""
    values = rows * model.sequence * model.hidden
    t = slicing.ways
    whole = t if slicing.sequence else 1
    if slicing.recompute == "full":
        return HALF * values / whole
    core = 0.0 if slicing.recompute == "selective" else 5 * model.heads * model.sequence / model.hidden / t
    return values * (10 / whole + 24 / t + core)


def crossing_bytes(model: Transformer, rows: int) -> float:
    """Bytes of a microbatch between two layers, and of every exchange of a sliced layer: 2 b s h."""
    return HALF * rows * model.sequence * model.hidden

"""Seconds of a training step of a GPT-like transformer on a described cluster, distributed as by Megatron.

    step    =  pipeline of stages  +  all-reduce of the gradients  +  update  +  a fixed time per step
    stage   =  layers / p of them; the last one computes the logits and the loss too
    layer   =  forward + backward, each  max(launch, arithmetic + memory + exchanges)

Arithmetic covers the products; memory covers everything between them: dropout, LayerNorm, GELU, softmax. They follow
one another on the device, and so do the exchanges of a sliced layer, which are not hidden. Launches overlap with all
of these.
"""

from dataclasses import dataclass, replace

from published.analytic import Device, StageTime, pipeline_seconds
from published.collectives import Link, all_reduce, passing
from published.transformer import (
    HALF,
    Slicing,
    Transformer,
    attention_flops,
    crossing_bytes,
    embedding_parameters,
    head_flops,
    kept_bytes,
    layer_flops,
    layer_parameters,
)

# Passes over the device's memory, estimated by counting kernels. A fitted bandwidth takes the error of all three.
PASSES = 4 / 3  # accesses of each byte that forward keeps: written once, read in part later; twice as many in backward
LOGIT_BYTES = 30  # per logit: two bytes there and back; the loss in four bytes: copy, maximum, exponential, gradient
UPDATE_BYTES = 30  # per parameter, Adam in mixed precision: gradient 2 + 2, master copy and moments 12 + 12, value 2


WHOLE = Slicing()


@dataclass(frozen=True)
class Spread:
    """Distribution of a step over workers: slices of each layer, stages (several chunks on each worker), and copies.

    rows: sequences of a microbatch. microbatches: of one copy, per step.
    """

    rows: int
    microbatches: int
    slicing: Slicing = WHOLE
    copies: int = 1
    stages: int = 1
    chunks: int = 1


def layer_time(model: Transformer, spread: Spread, device: Device, link: Link) -> StageTime:
    """Seconds of one layer for one microbatch; `inputs` is the whole backward, recomputation included."""
    slicing, rows = spread.slicing, spread.rows
    flops = layer_flops(model, rows) / slicing.ways
    nbytes = PASSES * kept_bytes(model, rows, replace(slicing, recompute="none"))
    exchanges = 2 * all_reduce(link, slicing.ways, crossing_bytes(model, rows))
    forward = device.arithmetic(flops) + device.moving(nbytes) + exchanges
    backward = 2 * (device.arithmetic(flops) + device.moving(nbytes)) + exchanges
    again = max(forward, device.launch) if slicing.recompute == "full" else 0.0
    if slicing.recompute == "selective":
        core = nbytes - PASSES * kept_bytes(model, rows, slicing)
        again = device.arithmetic(attention_flops(model, rows) / slicing.ways) + device.moving(core)
    return StageTime(max(forward, device.launch), max(backward, device.launch) + again)


def head_time(model: Transformer, spread: Spread, device: Device) -> StageTime:
    """Seconds of logits and loss for one microbatch, sliced along the vocabulary."""
    flops = head_flops(model, spread.rows) / spread.slicing.ways
    logits = spread.rows * model.sequence * model.vocabulary / spread.slicing.ways
    third = device.moving(LOGIT_BYTES * logits) / 3
    return StageTime(device.arithmetic(flops) + third, 2 * device.arithmetic(flops) + 2 * third)


def step_seconds(model: Transformer, spread: Spread, device: Device, link: Link, layer: StageTime) -> float:
    """Seconds of one training step; `layer` is `layer_time`'s, or measured."""
    count = model.layers / spread.stages
    stage = StageTime(count * layer.forward, count * layer.inputs)
    head = head_time(model, spread, device)
    last = StageTime(stage.forward + head.forward, stage.inputs + head.inputs)
    order = "interleaved" if spread.chunks > 1 else "1f1b"
    latency = passing(link, crossing_bytes(model, spread.rows))
    pipeline = pipeline_seconds(
        [*[stage] * (spread.stages - 1), last], spread.microbatches, spread.chunks, order, latency
    )
    held = (count * layer_parameters(model) + embedding_parameters(model)) / spread.slicing.ways
    return pipeline + all_reduce(link, spread.copies, HALF * held) + device.moving(UPDATE_BYTES * held)

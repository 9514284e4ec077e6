"""Seconds of computing on a described device, and of a pipeline of stages, from a few physical numbers.

    seconds
       |               /          FLOPs: (work + half) / (efficiency peak), what grows with the work
       |             /            bytes: nbytes / bandwidth, where memory is slower than arithmetic
       |___________/              launch: the device waits for kernels to be launched
       |
       +----------------- work

The efficiency of a kernel of some work w is  e w / (w + half):  it saturates. Roofline: Williams, Waterman,
Patterson 2009.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.errors import PlanRefused


@dataclass(frozen=True)
class Device:
    """Speed of a described device, for work of any size.

    flops: peak, FLOP/s. bandwidth: of its memory, bytes/s. efficiency: of the peak that large work reaches, at most
    1. half: FLOPs of a piece of work that reaches half of that. launch: seconds that a piece takes however small.
    Raises PlanRefused for numbers that no device has.
    """

    flops: float
    bandwidth: float
    efficiency: float = 1.0
    half: float = 0.0
    launch: float = 0.0

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0 and 0 < self.efficiency <= 1):
            raise PlanRefused(
                f"a device of {self.flops} FLOP/s, {self.bandwidth} bytes/s and an efficiency of {self.efficiency}: "
                "rates are above 0, an efficiency is above 0 and at most 1"
            )
        if not (self.half >= 0 and self.launch >= 0):
            raise PlanRefused(f"a device with half = {self.half} and launch = {self.launch}: both are 0 or more")

    def seconds(self, flops: float, nbytes: float = 0.0) -> float:
        """Seconds of work that does `flops` and moves `nbytes` through the device's memory. No work: zero."""
        if flops <= 0 and nbytes <= 0:
            return 0.0
        return max(self.arithmetic(flops), self.moving(nbytes), self.launch)

    def arithmetic(self, flops: float) -> float:
        """Seconds of arithmetic alone."""
        return (flops + self.half) / (self.efficiency * self.flops) if flops > 0 else 0.0

    def moving(self, nbytes: float) -> float:
        """Seconds of memory traffic alone for `nbytes`."""
        return nbytes / self.bandwidth


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage per microbatch: forward, input gradient and weight gradient (F, B, W)."""

    forward: float
    inputs: float
    weights: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.inputs + self.weights


def pipeline_seconds(
    stages: Sequence[StageTime], microbatches: int, chunks: int = 1, order: str = "1f1b", latency: float = 0.0
) -> float:
    """Seconds from the first forward to the last backward.

    stages: one per worker, summed over the `chunks` stages that it holds. latency: seconds from stage to stage.
    With equal stages m (F+B+W) and the bubble of the order. With uneven ones the slowest stage works without a pause
    and the others fill and drain the pipeline around it:

        gpipe, 1f1b             sum of the others (F+B+W)
        interleaved             the same / chunks
        zero-bubble             sum of the others max(0, F+B-W) / chunks     (Qi et al. 2024)

    A link's latency c is paid going down and up the pipeline, by plain 1f1b for every p microbatches again: its first
    stage has p microbatches under way and no more. Raises PlanRefused for an unknown order, or chunks without an
    order that has them.
    """
    if order not in ORDERS:
        raise PlanRefused(f"unknown order {order!r} (known: {', '.join(ORDERS)})")
    if chunks > 1 and order in ("gpipe", "1f1b"):
        raise PlanRefused(f"{chunks} chunks per worker under {order}: use interleaved or zero-bubble, or one chunk")
    slowest = max(range(len(stages)), key=lambda p: stages[p].total)
    others = [stage for p, stage in enumerate(stages) if p != slowest]
    bubble = sum(_fill(stage, order) for stage in others) / chunks
    return microbatches * stages[slowest].total + bubble + _waiting(len(stages), microbatches, order, latency)


ORDERS = ("gpipe", "1f1b", "interleaved", "zero-bubble")


def _fill(stage: StageTime, order: str) -> float:
    if order == "zero-bubble":
        return max(0.0, stage.forward + stage.inputs - stage.weights)
    return stage.total


def _waiting(stages: int, microbatches: int, order: str, latency: float) -> float:
    """Seconds of latency that are not hidden."""
    there_and_back = 2 * latency * (stages - 1)
    return there_and_back * max(1.0, microbatches / stages) if order == "1f1b" else there_and_back

"""A model of Megatron on A100s: eight physical numbers, and one efficiency per shape of layer that was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from measured import Row, Shape
from published.analytic import Device, StageTime
from published.calibration import fit
from published.collectives import Link
from published.transformer import Slicing, Transformer
from published.transformer_time import Spread, layer_time, step_seconds

PEAK, MEMORY, NVLINK = 312e12, 2.039e12, 300e9  # A100-80GB's data sheet: FLOP/s, bytes/s, bytes/s each way


@dataclass(frozen=True)
class Machine:
    """Fractions of the data sheet's rates, and fixed times."""

    arithmetic: float = 0.6
    half: float = 1e10  # FLOPs
    memory: float = 0.6
    launch: float = 3e-3  # seconds for the kernels of a layer, half of them forward
    launch_sliced: float = 0.5e-3  # more of them in a sliced layer
    link: float = 0.6
    latency: float = 3e-5  # seconds
    step: float = 5e-3  # fixed seconds per step

    def device(self, ways: int) -> Device:
        launch = self.launch + (self.launch_sliced if ways > 1 else 0.0)
        return Device(PEAK, min(1.0, self.memory) * MEMORY, min(1.0, self.arithmetic), self.half, launch / 2)

    def between(self) -> Link:
        return Link(self.latency, min(1.0, self.link) * NVLINK)


PHYSICAL = tuple(vars(Machine()).values())
PULL, SHAPE_PULL = 0.05, 0.1
"""An error of 2 % in a time; e-fold freedom around 0.4 for the physical numbers, around 20 % for a shape."""


@dataclass(frozen=True)
class Fitted:
    machine: Machine
    shapes: dict[Shape, float]  # measured over predicted seconds of a layer; 1 if not measured

    def seconds(self, row: Row) -> float:
        """Predicted seconds of a step."""
        ways, copies, stages = row.ways, row.copies, row.stages
        model = Transformer(row.hidden, row.layers, row.heads, row.sequence)
        spread = Spread(row.rows, row.microbatches, Slicing(ways), copies, stages)
        device, link = self.machine.device(ways), self.machine.between()
        layer, factor = layer_time(model, spread, device, link), self.shapes.get(row.shape, 1.0)
        layer = StageTime(factor * layer.forward, factor * layer.inputs)
        return step_seconds(model, spread, device, link, layer) + self.machine.step


def calibrated(rows: Sequence[Row], per_shape: bool = True) -> Fitted:
    """Calibration from measured rows alone."""
    shapes = sorted({row.shape for row in rows}) if per_shape else []

    def fitted(values: Sequence[float]) -> Fitted:
        split = len(PHYSICAL)
        return Fitted(Machine(*map(float, values[:split])), dict(zip(shapes, map(float, values[split:]), strict=True)))

    start = [*PHYSICAL, *[1.0] * len(shapes)]
    pull = [*[PULL] * len(PHYSICAL), *[SHAPE_PULL] * len(shapes)]
    seconds = [row.seconds for row in rows]
    return fitted(fit(lambda values, row: fitted(values).seconds(row), start, rows, seconds, pull).tolist())

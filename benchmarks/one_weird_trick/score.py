"""Krizhevsky's table from layer sizes: `python benchmarks/one_weird_trick/score.py` prints it, and one JSON line.

Nothing is fitted. Known are the layers' sizes, the time of one worker's step and the links' bandwidth.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from published.collectives import Link
from published.whole_or_sliced import (
    Choice,
    LayerSizes,
    choose,
    exchange_seconds,
)

FLOAT, ROWS, STEP = 4, 128, 0.3918  # bytes, images per worker, seconds of one worker's step (Krizhevsky 2014, table 1)
WITHIN, ACROSS, SLOW = 3e9, 1.5e9, 1e9 / 8  # bytes/s: 4 GPUs of a socket, across sockets, a network of 1 Gbit/s
GROUP = 4  # GPUs of a socket
HOURS = {1: 98.05, 2: 50.24, 4: 26.20, 8: 15.68}  # for 90 epochs, hybrid, batch 128 per GPU (the same table)
SLOW_DATA = {2: 0.33, 4: 0.47, 8: 0.82}  # times one worker's rate at 1 Gbit/s
SLOW_HYBRID = {2: 1.28, 4: 1.67, 8: 2.05}


def conv(name: str, channels: tuple[int, int], kernel: int, side: tuple[int, int], first: bool = False) -> LayerSizes:
    (before, after), (width_in, width_out) = channels, side
    weight = after * (before * kernel**2 + 1)
    return LayerSizes(name, FLOAT * weight, FLOAT * before * width_in**2, FLOAT * after * width_out**2, first)


def linear(name: str, before: int, after: int) -> LayerSizes:
    return LayerSizes(name, FLOAT * after * (before + 1), FLOAT * before, FLOAT * after)


ALEXNET = [
    conv("conv1", (3, 64), 11, (224, 55), first=True),
    conv("conv2", (64, 192), 5, (27, 27)),
    conv("conv3", (192, 384), 3, (13, 13)),
    conv("conv4", (384, 256), 3, (13, 13)),
    conv("conv5", (256, 256), 3, (13, 13)),
    linear("fc6", 9216, 4096),
    linear("fc7", 4096, 4096),
    linear("fc8", 4096, 1000),
]


@dataclass(frozen=True)
class Prediction:
    workers: int
    sliced: tuple[str, ...]  # names of the sliced layers
    hybrid: float  # times the rate of one worker
    data: float


def predict(workers: int, bandwidth: float, layers: list[LayerSizes] = ALEXNET) -> Prediction:
    """Prediction with 128 rows on each worker; no exchange is hidden."""
    link = Link(0.0, bandwidth)
    chosen: Choice = choose(layers, link, workers, ROWS)
    data = exchange_seconds(layers, [False] * len(layers), link, workers, ROWS)
    names = tuple(layer.name for layer, sliced in zip(layers, chosen.sliced, strict=True) if sliced)
    return Prediction(workers, names, *(workers * STEP / (STEP + seconds) for seconds in (chosen.seconds, data)))


def fast(workers: int) -> Prediction:
    """Prediction for the eight K20s: beyond a socket a ring is as fast as its slowest link."""
    return predict(workers, WITHIN if workers <= GROUP else ACROSS)


def errors() -> dict[int, float]:
    """Errors of the predicted times at 2, 4 and 8 workers, as fractions of the published ones."""
    return {n: (HOURS[1] / fast(n).hybrid) / HOURS[n] - 1 for n in (2, 4, 8)}


def main() -> None:
    print("workers  published  predicted   1 Gbit/s: data  predicted   hybrid  predicted", file=sys.stderr)
    for n in (2, 4, 8):
        slow = predict(n, SLOW)
        print(
            f"{n:7}  {HOURS[1] / HOURS[n]:8.2f}x {fast(n).hybrid:9.2f}x  {SLOW_DATA[n]:13.2f}x {slow.data:9.2f}x"
            f"  {SLOW_HYBRID[n]:6.2f}x {slow.hybrid:9.2f}x",
            file=sys.stderr,
        )
    result = {
        "errors": {n: round(error, 4) for n, error in errors().items()},
        "fast": [asdict(fast(n)) for n in (2, 4, 8)],
        "slow": [asdict(predict(n, SLOW)) for n in (2, 4, 8)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""A model of benchmarks/models.py as a job."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import samestep
from models import MODELS, optimizer

EVER = 10**9  # steps


def job(model: str, shards: int = 0, folder: str = "") -> samestep.Job:
    build, data, loss, batch_size = MODELS[model]
    callbacks = []
    if folder:
        from contender import TurnsCallback

        callbacks = [TurnsCallback(folder)]
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=shards or None,
        steps=EVER, callbacks=callbacks,
    )  # fmt: skip

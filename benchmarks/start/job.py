"""The MLP of the tables, with a callback that notes when a step is done."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import samestep
from models import MODELS, optimizer


def job(mark: str) -> samestep.Job:
    build, data, loss, batch_size = MODELS["mlp"]

    def note(step: int, loss: float, metrics: object) -> None:
        Path(mark).write_text(str(time.time()))

    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, callbacks=[note]
    )

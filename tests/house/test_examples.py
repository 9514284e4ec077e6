"""Every example trains, with the same bits on one worker and on two."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import samestep
from samestep.launch.run.launcher import Launcher

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "cnn": {},
    "alexnet": {},
    "gpt": {"d": 32, "layers": 1, "positions": 24},
}


def jobs() -> list[str]:
    """Names of the examples that have a job function."""
    return sorted(path.stem for path in EXAMPLES.glob("*.py") if "def job(" in path.read_text())


def test_no_example_is_forgotten() -> None:
    assert set(jobs()) == set(SETTINGS)


@pytest.mark.parametrize("name", jobs())
def test_an_example_has_one_digest_on_one_worker_and_on_two(launcher: Launcher, name: str) -> None:
    one, two = (
        samestep.train(
            str(EXAMPLES / f"{name}.py"), settings=SETTINGS[name], workers=workers, steps=4, launcher=launcher
        )
        for workers in (1, 2)
    )
    assert one.digest == two.digest
    assert list(one.losses) == list(two.losses)
    assert all(map(math.isfinite, one.losses))
    assert one.metrics == two.metrics


@pytest.mark.parametrize("name", jobs())
def test_an_example_can_be_trained_for_longer_than_its_settings_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--epochs 5` ended in torch's OneCycleLR: "Tried to step 255 times"."""
    monkeypatch.syspath_prepend(EXAMPLES)
    job: samestep.Job = importlib.import_module(name).job()
    if job.scheduler is None:
        return
    optimizer = job.optimizer([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))])
    scheduler = job.scheduler(optimizer)
    for _ in range(1000):
        optimizer.step()
        scheduler.step()
    assert all(group["lr"] >= 0 for group in optimizer.param_groups)

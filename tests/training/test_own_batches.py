"""A loop of one's own is held to the same step: habits of other libraries are found at the step that has them."""

import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samestep
from commands import free_port, start_script
from samestep.errors import Refused

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "own_habits.py"


def two_workers(*arguments: str) -> list[list[str]]:
    """The lines that each of two workers prints."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    started = [
        start_script(SCRIPT, *arguments, stdout=subprocess.PIPE, env={**os.environ, **world, "RANK": str(rank)})
        for rank in range(2)
    ]
    return [process.communicate(timeout=120)[0].splitlines() for process in started]


def test_batches_from_the_global_generators_stay_alike() -> None:
    first, second = two_workers("global generator")
    assert first == second
    assert len(first) == 3
    assert len({line.split()[0] for line in first}) == 3


HABITS = {
    "rows of ones own": (
        0,
        r"step 0: the batch is \(16, 4\) torch.float32 \[.*\] on worker 0 and .* on worker 1: .*Dist",
    ),
    "sorted on one": (0, r"step 0: the batch is"),
    "a short batch": (
        2,
        r"step 2: the number of rows of the batch is 16 on worker 0 and 15 on worker 1: .*whole batch",
    ),
    "a rate": (2, r"step 2: lr of the optimizer's parameter group 0 is 0.1 on worker 0 and 0.05 on worker 1: .*sched"),
    "evaluated on one": (2, r"step 2: the mode of the model is train on worker 0 and eval on worker 1: .*alike"),
}


@pytest.mark.parametrize("habit", HABITS)
def test_what_differs_between_workers_is_refused_at_that_step(habit: str) -> None:
    steps, message = HABITS[habit]
    for lines in two_workers(habit):
        assert len(lines) == steps + 1, lines
        name, _, text = lines[-1].partition(" ")
        assert name == "Refused"
        assert re.search(message, text), text


def rows(number: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(number, 4), torch.randn(number, 1)


def job(**changes: object) -> samestep.Job:
    parts: dict[str, object] = {
        "model": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1)),
        "loss": nn.MSELoss(),
        "data": rows(64),
        "optimizer": lambda params: torch.optim.SGD(params, 0.1),
        "batch_size": 16,
        "shards": 4,
    }
    return samestep.Job(**{**parts, **changes})  # type: ignore[arg-type]


def test_generators_are_as_they_were_after_any_step() -> None:
    with samestep.Trainer(job(evaluate=rows(8)), seed=3) as trainer:
        for call in (trainer.step, trainer.evaluate, trainer.digest):
            torch.manual_seed(5)
            np.random.seed(5)
            random.seed(5)
            wanted = torch.rand(1).item(), np.random.rand(), random.random()
            torch.manual_seed(5)
            np.random.seed(5)
            random.seed(5)
            call()
            assert (torch.rand(1).item(), np.random.rand(), random.random()) == wanted


@pytest.mark.parametrize("own_first", [True, False])
def test_own_batches_and_the_jobs_are_not_mixed(own_first: bool) -> None:
    calls = [lambda trainer: trainer.step(rows()), lambda trainer: trainer.step()]
    with samestep.Trainer(job()) as trainer:
        for _ in range(2):
            calls[not own_first](trainer)
        with pytest.raises(Refused, match=r"step 2 is step\(.*and the steps before it were step\("):
            calls[own_first](trainer)


def forward_in_train_mode(trainer: samestep.Trainer) -> None:
    with torch.no_grad():
        trainer.model(rows()[0])


def backward(trainer: samestep.Trainer) -> None:
    trainer.model.eval()
    trainer.model(rows()[0]).sum().backward()
    trainer.model.train()


def freeze(trainer: samestep.Trainer) -> None:
    trainer.model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]


TOUCHES: dict[str, tuple[Callable[[samestep.Trainer], None], str]] = {
    "train mode": (forward_in_train_mode, r"buffer 1\.\w+ was changed between two steps, before step 1.*eval\(\)"),
    "backward": (backward, r"parameter 0\.weight was given a gradient between steps.*autograd\.grad"),
    "freeze": (freeze, r"requires_grad of parameter 0\.weight was True .* set to False between steps.*Job\.model"),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_network_used_between_steps_is_noticed(touch: str) -> None:
    act, message = TOUCHES[touch]
    with samestep.Trainer(job()) as trainer:
        trainer.step()
        act(trainer)
        with pytest.raises(Refused, match=message):
            trainer.step()


def test_a_network_may_be_looked_at_between_steps() -> None:
    def digest(*, look: bool) -> str:
        torch.manual_seed(0)
        with samestep.Trainer(job(), seed=1) as trainer:
            for _ in range(3):
                trainer.step()
                if look:
                    trainer.model.eval()
                    with torch.no_grad():
                        trainer.model(rows()[0])
                    trainer.model.train()
            return trainer.digest()

    assert digest(look=False) == digest(look=True)


def test_a_switch_that_one_forward_makes_and_undoes_is_its_own() -> None:
    """As critics do, whose weights get no gradient from the generator's loss."""

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = next(model.parameters()).requires_grad_(False)
        out = model(batch[0])
        weight.requires_grad_(True)
        return torch.as_tensor((out - batch[1]).square().mean())

    with samestep.Trainer(job(loss=None, forward=forward)) as trainer:
        trainer.step()
        trainer.step()

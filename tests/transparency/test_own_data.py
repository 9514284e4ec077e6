"""Data sets with open files or generators of their own give the rows of one process, or are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

import samestep
from jobs import own_data
from samestep.errors import Refused, SamestepError
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "own_data.py"


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("data", ["OpenFile", "unbuffered", "Archive", "Gone"])
def test_every_process_reads_from_its_own_position(data: str, loaders: int, tmp_path: Path, launcher: Launcher) -> None:
    found = [
        samestep.train(
            f"{JOBS}:job", workers=workers, plan="data", launcher=launcher,
            settings={"data": one, "folder": str(tmp_path), "loaders": loaders if workers > 1 else 0},
        ).digest
        for one, workers in (("Base", 1), (data, 3))
    ]  # fmt: skip
    assert found[0] == found[1]


@pytest.mark.parametrize(("workers", "loaders"), [(1, 1), (2, 0)])
@pytest.mark.parametrize(
    ("data", "kind"), {"numpy": "Generator", "torch": "Generator", "random": "Random", "InTurn": "BytesIO"}.items()
)
def test_a_generator_of_the_datas_own_is_refused(
    data: str, kind: str, workers: int, loaders: int, launcher: Launcher
) -> None:
    settings = {"data": data, "loaders": loaders}
    with pytest.raises(SamestepError, match=rf"Job\.data\[\d+\] was made twice.*a {kind} as its attribute \w+.*seeded"):
        samestep.train(f"{JOBS}:job", workers=workers, plan="data", settings=settings, launcher=launcher)


def test_a_generator_of_a_collate_functions_own_is_refused(launcher: Launcher) -> None:
    with pytest.raises(Refused, match=r"first batch of Job\.collate_fn was made twice.*\[0\].*its attribute generator"):
        samestep.train(f"{JOBS}:masking", workers=2, plan="data", launcher=launcher)


def test_an_iterable_with_a_generator_of_its_own_is_refused(launcher: Launcher) -> None:
    with pytest.raises(Refused, match=r"row \d+ of Job\.data was made twice"):
        samestep.train(f"{JOBS}:beyond", workers=2, plan="data", settings={"own": True}, launcher=launcher)


@pytest.mark.parametrize("loaders", [0, 1])
@pytest.mark.parametrize("loss", ["mean", "torch", "norm"])
def test_rows_dropped_in_collate_have_no_weight(loss: str, loaders: int, launcher: Launcher) -> None:
    settings = {"loss": loss, "loaders": loaders, "evaluated": 1}
    one, two = (
        samestep.train(f"{JOBS}:dropping", workers=workers, plan="data", settings=settings, launcher=launcher)
        for workers in (1, 2)
    )
    assert one.digest == two.digest
    assert one.rows_dropped == two.rows_dropped == 13
    x, y = own_data.readable([own_data.Broken()[i] for i in range(own_data.ROWS)])
    if loss == "norm":
        return
    torch.manual_seed(0)
    model = nn.Linear(own_data.WIDTH - 1, 1)
    report = one.state_dict()
    start = {name: value.clone() for name, value in report.items()}
    # The plain step from the weights before, which is the only one that leads to these weights.
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    inverse = torch.eye(design.shape[1]) - 0.2 * design.T @ design / len(x)
    after = torch.cat([start["weight"][0], start["bias"]])
    before = torch.linalg.solve(inverse.double(), (after - 0.2 * (design.T @ y)[:, 0] / len(x)).double()).float()
    model.load_state_dict({"weight": before[None, :-1], "bias": before[-1:]})
    assert float((model(x) - y).square().mean().detach()) == pytest.approx(one.losses[0], rel=1e-4)
    with torch.no_grad():
        model.load_state_dict(start)
        assert float((model(x) - y).square().mean()) == pytest.approx(one.metrics["loss"], rel=1e-5)

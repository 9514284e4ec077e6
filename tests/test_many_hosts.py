"""The same digest wherever the workers stand: threads that pretend to be hosts, every kind of plan.

The layouts below are workers per host:

    (4,)        [0 1 2 3]               one host
    (2, 2)      [0 1] [2 3]             as many on each: they swap sums
    (1, 2, 1)   [0] [1 2] [3]           three hosts: each sums a part and tells the others
    (1, 3)      [0] [1 2 3]
    (2, 1, 2, 1) [0 1] [2] [3 4] [5]    six workers, four hosts

Real hosts, with a link each, are in test_hosts.py; codecs on several hosts in test_codec_runs.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import samestep
from samestep.launch.launcher import Launcher
from samestep.report import Report

JOBS = Path(__file__).parent / "jobs" / "grids.py"
LAYOUTS = [(2, 2), (1, 2, 1), (1, 3), (2, 1, 2, 1)]
PLANS = ["data", "hybrid", "slices", "pipeline"]
FAMILIES = ["mlp", "cnn", "gpt", "resnet", "embedding"]

Train = Callable[..., Report]


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Train:
    def run(family: str, **options: object) -> Report:
        return samestep.train(f"{JOBS}:{family}", launcher=launcher, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> Train:
    """A job on one worker, trained once."""
    known: dict[str, Report] = {}

    def run(family: str, **options: object) -> Report:
        name = f"{family} {options}"
        if name not in known:
            known[name] = train(family, workers=1, **options)
        return known[name]

    return run


def on(hosts: tuple[int, ...]) -> dict[str, object]:
    return {"workers": sum(hosts), "hosts": hosts, "transport": "threads"}


@pytest.mark.parametrize("hosts", LAYOUTS, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_digest_on_any_hosts(train: Train, alone: Train, family: str, plan: str, hosts: tuple[int, ...]) -> None:
    one = alone(family, plan=plan)
    many = train(family, plan=plan, **on(hosts))
    assert many.digest == one.digest
    assert many.losses == one.losses
    assert many.metrics == one.metrics


@pytest.mark.parametrize(
    ("hosts", "assign"),
    [((1, 1), (5, 3)), ((1, 1), (7, 1)), ((2, 1), (1, 1, 6)), ((1, 2, 1), (4, 2, 1, 1))],
    ids=str,
)
@pytest.mark.parametrize("family", ["mlp", "cnn", "gpt"])
def test_uneven_hosts(train: Train, alone: Train, family: str, hosts: tuple[int, ...], assign: tuple[int, ...]) -> None:
    assert train(family, assign=assign, **on(hosts)).digest == alone(family).digest


@pytest.mark.parametrize("plan", PLANS)
def test_a_checkpoint_moves_between_hosts(train: Train, alone: Train, tmp_path: Path, plan: str) -> None:
    one = alone("gpt", plan=plan)
    folder = tmp_path / "checkpoint"
    steps = len(one.losses)
    train("gpt", plan=plan, steps=steps - 2, checkpoint=folder, **on((2, 2)))
    train("gpt", plan=plan, steps=steps - 1, checkpoint=folder, resume=True, **on((1, 2, 1)))
    assert train("gpt", plan=plan, steps=steps, checkpoint=folder, resume=True, **on((1, 3))).digest == one.digest


@pytest.mark.parametrize("plan", ["slices", "pipeline"])
def test_weights_of_all_hosts_are_saved(train: Train, tmp_path: Path, plan: str) -> None:
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    train("gpt", plan=plan, workers=1, save=one)
    train("gpt", plan=plan, save=many, **on((1, 2, 1)))
    assert one.read_bytes() == many.read_bytes()

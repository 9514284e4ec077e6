"""The same digest wherever the workers stand: threads that pretend to be hosts, every kind of plan.

Real hosts, with a link each, are in test_hosts.py; codecs on several hosts in test_codec_runs.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from pairwise import crossed
from samestep.job.report import Report
from thread_hosts import LAYOUTS, on

PLANS = ["data", "hybrid", "slices", "pipeline"]
FAMILIES = ["mlp", "cnn", "gpt", "resnet", "embedding"]

Train = Callable[..., Report]


@pytest.mark.parametrize(
    ("family", "plan", "hosts"), crossed(FAMILIES, PLANS, LAYOUTS, whole=lambda family, *_: family == "mlp"), ids=str
)
def test_same_digest_on_any_hosts(train: Train, alone: Train, family: str, plan: str, hosts: tuple[int, ...]) -> None:
    one = alone(family, plan=plan)
    many = train(family, plan=plan, **on(*hosts))
    assert many.digest == one.digest
    assert many.losses == one.losses
    assert many.metrics == one.metrics


UNEVEN = [((1, 1), (5, 3)), ((1, 1), (7, 1)), ((2, 1), (1, 1, 6)), ((1, 2, 1), (4, 2, 1, 1))]


@pytest.mark.parametrize(
    ("family", "hosts", "assign"),
    [
        pytest.param(family, *layout, marks=[] if family == "mlp" or layout in kept else [pytest.mark.slow])
        for family, kept in {"mlp": UNEVEN, "cnn": UNEVEN[::2], "gpt": UNEVEN[1::2]}.items()
        for layout in UNEVEN
    ],
    ids=str,
)
def test_uneven_hosts(train: Train, alone: Train, family: str, hosts: tuple[int, ...], assign: tuple[int, ...]) -> None:
    assert train(family, assign=assign, **on(*hosts)).digest == alone(family).digest


@pytest.mark.parametrize("options", [{}, {"codec": "int8@0,1"}, {"numerics": "precision=bfloat16"}], ids=str)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_weight_gradients_that_come_later_on_two_hosts(
    family: str, options: dict[str, str], train: Train, alone: Train, tmp_path: Path
) -> None:
    """Each stage on workers of both; in bfloat16 nothing is left for later, and the order is the same."""
    file = tmp_path / "plan.toml"
    found = alone(family, **options)
    file.write_text(
        f'numerics = "{found.numerics}"\norder = "zero-bubble"\n[[stage]]\nworkers = [0, 1]\nassign = [5, 3]\n'
        f'[[stage]]\nfirst = "head"\nworkers = [2, 1]\nassign = [2, 6]\n'
    )
    many = train(family, plan=str(file), hosts=(1, 2), transport="threads")
    assert (many.digest, many.losses) == (found.digest, found.losses)


@pytest.mark.parametrize("plan", PLANS)
def test_a_checkpoint_moves_between_hosts(train: Train, alone: Train, tmp_path: Path, plan: str) -> None:
    one = alone("gpt", plan=plan)
    folder = tmp_path / "checkpoint"
    train("gpt", plan=plan, steps=2, checkpoint=folder, **on(2, 2))
    train("gpt", plan=plan, steps=3, checkpoint=folder, resume=True, **on(1, 2, 1))
    last = train("gpt", plan=plan, checkpoint=folder, resume=True, **on(1, 3))
    assert last.digest == one.digest
    assert last.losses == one.losses[3:], "it went on, and did not begin again"


@pytest.mark.parametrize("plan", ["slices", "pipeline"])
def test_weights_of_all_hosts_are_saved(train: Train, tmp_path: Path, plan: str) -> None:
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    train("gpt", plan=plan, workers=1, save=one)
    train("gpt", plan=plan, save=many, **on(1, 2, 1))
    assert one.read_bytes() == many.read_bytes()

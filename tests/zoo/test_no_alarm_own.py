"""Right configurations of samestep's own jobs: `verify` raises no alarm at any of them."""

from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).parents[1]

PLAIN = ["mlp", "cnn_sync", "gpt", "lstm", "embedding_bag", "regression", "summed", "gradient_penalty",
         "ignored_labels", "weighted_classes", "sum_and_weight", "weighted_rows"]  # fmt: skip
RIGHT: list[tuple[str, str, dict[str, Any]]] = [
    *(("plain_steps", name, {"plan": "data", "assign": (5, 3)}) for name in PLAIN),
    *(("plain_steps", name, {"plan": "data", "workers": 3, "transport": "threads"}) for name in PLAIN[:5]),
    *(("transparent", name, {"plan": "data", "workers": 2}) for name in ("mlp", "cnn", "gpt", "mixed", "in_place",
      "adamw_cycle", "odd_sizes", "augmentation", "spectral", "adversarial", "dict_batches", "repeated_layer")),
    *(("grids", name, {"plan": plan, "workers": 2}) for name in ("mlp", "cnn", "gpt", "resnet", "embedding", "encoder")
      for plan in ("data", "pipeline")),
    *(("grids", name, {"plan": "slices", "workers": 2}) for name in ("mlp", "cnn", "gpt", "embedding")),
]  # fmt: skip

FOR_TEST_ALL = {  # the same job under another plan, or a job whose kind another one has
    ("plain_steps", "threads"): {"cnn_sync", "lstm", "embedding_bag", "mlp"},
    ("plain_steps", "processes"): {"gpt", "regression", "sum_and_weight"},
    ("transparent", "processes"): {"mlp", "cnn", "gpt", "odd_sizes", "spectral", "dict_batches"},
    ("grids", "data"): {"cnn", "gpt", "encoder", "embedding"},
    ("grids", "pipeline"): {"mlp", "resnet", "embedding"},
    ("grids", "slices"): {"mlp", "cnn"},
}


def marks(file: str, function: str, options: dict[str, Any]) -> list[pytest.MarkDecorator]:
    key = (file, options["plan"] if file == "grids" else options.get("transport", "processes"))
    return [pytest.mark.slow] if function in FOR_TEST_ALL.get(key, ()) else []


@pytest.mark.parametrize(
    ("file", "function", "options"),
    [pytest.param(*case, marks=marks(*case)) for case in RIGHT],
    ids=[f"{f} {n} {o['plan']} {o.get('assign', o.get('workers'))}" for f, n, o in RIGHT],
)
def test_no_alarm(file: str, function: str, options: dict[str, Any], launcher: Launcher) -> None:
    verdict = samestep.verify(f"{TESTS / 'jobs' / file}.py:{function}", steps=2, launcher=launcher, **options)
    assert verdict.is_same, verdict.text()
    assert sum(verdict.compared.values()) > 10

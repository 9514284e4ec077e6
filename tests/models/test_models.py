"""Models of the zoo under every plan on one and two workers: right, or refused before the first update.

A few of each kind; `python tests/models/run.py` goes through all of them (benchmarks/models has the table).
"""

from collections.abc import Iterator

import pytest

from models.catalogue import KIND, LIBRARIES, missing, names, specimen
from models.outcome_of import Rounding, judged
from models.specimen import drops
from models.warm_launcher import warm_launcher
from samestep.launch.run.launcher import Launcher

CHOSEN = ["mlp", "capsules", "tied language model", "swin"]
"""Of different kinds; every plan is right for them."""


@pytest.fixture(scope="module")
def warm() -> Iterator[Launcher]:
    with warm_launcher([name for name in CHOSEN if missing(name) is None]) as one:
        yield one


@pytest.mark.parametrize("name", CHOSEN)
def test_every_plan_is_right(name: str, warm: Launcher) -> None:
    if library := missing(name):
        pytest.skip(f"{library} is not installed")
    one = specimen(name)
    found = judged(warm, name, Rounding.of(one.job()), drops=drops(one.made()))
    assert {outcome.plan: outcome.kind for outcome in found} == {
        f"{plan} {workers}": "ok" for plan in ("data", "pipeline", "slices") for workers in (1, 2)
    }


def test_the_zoo_has_enough_models_and_no_name_twice() -> None:
    assert len(names()) >= 90
    assert len(KIND) == sum(len(models) for models in LIBRARIES.values())


def test_a_model_without_its_library_is_skipped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing("bert") == "transformers"
    assert missing("mlp") is None

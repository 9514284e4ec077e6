"""Traits of two jobs are compared: equal ones have no difference, and whatever is changed is found by its name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import CheckpointRefused
from samestep.state.job_traits import Difference, check_names, differences, not_meant, refuse, renamed, same

numbers = st.floats() | st.integers() | st.none() | st.booleans()
values = numbers | st.text(max_size=4) | st.lists(numbers, max_size=3)
names = st.text("abcdef", min_size=1, max_size=4)


@st.composite
def traits(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    schedule = st.fixed_dictionaries({part: st.dictionaries(names, values) for part in ("state", "reads", "functions")})
    data = st.fixed_dictionaries({"columns": st.lists(st.text(max_size=5)), "rows": st.text("0123", min_size=12)})
    return {
        "hyperparameters": [{key: draw(values) for key in keys} for _ in range(draw(st.integers(1, 3)))],
        "schedule": draw(st.none() | schedule),
        "settings": draw(st.dictionaries(names, values)),
        "length": {"steps": draw(st.none() | st.integers(1, 9)), "epochs": None},
        "file": draw(st.none() | st.text("0123", min_size=4)),
        "data": draw(st.none() | data | st.fixed_dictionaries({"error": st.text()})),
        "structure": [[name, draw(names), draw(st.text(max_size=5))] for name in draw(st.lists(names, unique=True))],
    }


@given(traits())
def test_a_job_has_no_difference_from_itself_nor_from_its_json(found: dict[str, Any]) -> None:
    assert differences(found, copy.deepcopy(found)) == []
    assert differences(found, json.loads(json.dumps(found))) == []


@given(traits(), st.data())
def test_a_hyperparameter_that_is_changed_is_found_by_its_name(found: dict[str, Any], data: st.DataObject) -> None:
    there, group = copy.deepcopy(found), data.draw(st.sampled_from(range(len(found["hyperparameters"]))))
    key = data.draw(st.sampled_from(sorted(there["hyperparameters"][group])))
    there["hyperparameters"][group][key] = ["another", there["hyperparameters"][group][key]]
    assert key in {one.name for one in differences(there, found)}


@given(traits(), names, values, values)
def test_a_setting_that_is_changed_is_found_and_does_not_matter_alone(
    found: dict[str, Any], name: str, old: Any, new: Any
) -> None:
    there, here = copy.deepcopy(found), copy.deepcopy(found)
    there["settings"][name], here["settings"][name] = old, new
    (*settings,) = differences(there, here)
    assert bool(settings) == (not same(old, new))
    assert all(one.name == name and not one.matters for one in settings)
    assert len(refuse(settings, Path("folder"))) == len(settings)


@given(traits(), st.integers(1, 9), st.integers(1, 9))
def test_a_setting_that_is_the_length_is_free(found: dict[str, Any], before: int, now: int) -> None:
    there, here = copy.deepcopy(found), copy.deepcopy(found)
    there["settings"]["long"] = there["length"]["steps"] = before
    here["settings"]["long"] = here["length"]["steps"] = now
    assert differences(there, here) == []


def test_names_of_classes_are_told_and_settings_of_modules_refused() -> None:
    there = [["", "Net", ""], ["drop", "Dropout", "p=0.1"]]
    here = [["", "Network", ""], ["drop", "Dropout", "p=0.2"]]
    assert renamed(there, here) == "module model is a Net there and a Network here"
    assert renamed(there, there) is None
    traits_of = {"hyperparameters": [], "schedule": None, "settings": {}, "length": {}, "data": None}
    (one,) = differences({**traits_of, "structure": there}, {**traits_of, "structure": here})
    assert str(one) == "its module drop is Dropout(p=0.1), this job's is Dropout(p=0.2)"


LR, LOSS, DATA = (Difference(name, name, 1, 2) for name in ("lr", "loss", "data"))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ((), ["lr", "loss", "data"]),
        (("lr",), ["loss", "data"]),
        (("LR", "loss"), ["data"]),
        (("data",), ["lr"]),  # other data give another loss
        (("model",), ["lr", "data"]),
    ],
)
def test_what_is_meant_is_no_difference(change: tuple[str, ...], left: list[str]) -> None:
    assert [one.name for one in not_meant([LR, LOSS, DATA], change)] == left


def test_all_differences_are_named_at_once() -> None:
    unused = Difference("unused", "setting unused", 1, 2, matters=False)
    with pytest.raises(CheckpointRefused, match=r"its lr is 1, this job's is 2; its setting.*--change lr,unused if"):
        refuse([LR, unused], Path("folder"))


def test_names_are_known_in_any_spelling() -> None:
    check_names(["batch size", "Batch-Size", "lr"], [["batch size"], {"initial_lr": 1}])
    with pytest.raises(
        CheckpointRefused, match="--change rate: the job has nothing of that name; it takes batch_size, lr"
    ):
        check_names(["rate"], [["batch size"], {"initial_lr": 1}])

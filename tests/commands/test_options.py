"""The options of the command line come from one table, which is that of the Python API."""

import inspect
import json
from pathlib import Path

import pytest

import samestep
from samestep.commands.options import make_request
from samestep.errors import PlanRefused
from samestep.launch.request.options import GROUP_OF, OPTIONS
from samestep.launch.request.request import Mode, Request


def test_train_takes_every_option_of_the_table() -> None:
    parameters = inspect.signature(samestep.train).parameters
    own = ("job", "settings", "launcher", "watcher")
    assert set(parameters) - set(own) == set(OPTIONS) - {"probe"}, "a run's option belongs into both"
    for name, option in OPTIONS.items():
        if name not in ("probe", "plan"):
            assert parameters[name].default == option.default, name


def test_a_request_travels_as_one_object() -> None:
    request = Request.of("r", workers=2, assign=(3, 1), settings={"sizes": [1, 2]}, numerics="seed=1", mode=Mode.TUNE)
    assert Request.from_json(json.loads(json.dumps(request.as_json()))) == request
    assert set(request.as_json()) == {*GROUP_OF, "run", "mode", "counts"}
    assert request.but(assign=None, run="s").as_json() == request.as_json() | {"assign": None, "run": "s"}


def test_tuning_does_not_read_the_lock_that_it_may_replace(tmp_path: Path) -> None:
    job = tmp_path / "digits.py"
    job.write_text("")
    (tmp_path / "digits.samestep.toml").write_text("no lock")
    with pytest.raises(PlanRefused, match="no lock file"):
        make_request(str(job), (), {})
    assert make_request(str(job), (), {"tune": True}).source.locked is None

"""A request travels as JSON, with settings of every type that is documented."""

import json
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.errors import PlanRefused, Refused
from samestep.launch.request.options import JobSource
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).resolve().parents[2] / "jobs" / "own_data.py"


@pytest.mark.parametrize("value", [True, 3, 0.5, "text", Path("/a/folder"), None, [1, 2], {"a": 1}])
def test_settings_travel(value: Any) -> None:
    request = Request.made_here(JobSource(file=None, settings={"it": value}), None)
    found = Request.from_json(json.loads(json.dumps(request.as_json())))
    assert found.source.settings == {"it": value}
    assert type(found.source.settings["it"]) is type(value)


def test_a_path_reaches_the_job(tmp_path: Path, launcher: Launcher) -> None:
    report = samestep.train(
        f"{JOBS}:job", settings={"data": "OpenFile", "folder": tmp_path}, workers=1, launcher=launcher
    )
    assert (tmp_path / "rows.bin").exists()
    assert report.steps == 8


def test_frozen_weights_count_against_the_limit(launcher: Launcher) -> None:
    job = JOBS.with_name("frozen_base.py")
    with pytest.raises((PlanRefused, Refused), match=r"parameters 40\.\d+ MB.*--memory-limit allows"):
        samestep.train(f"{job}:job", workers=2, plan="data", memory_limit=40_000_000, launcher=launcher)

"""Shards are dealt anew while a job runs, and the bits stay those of one worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import samestep
from samestep.cli import main
from samestep.errors import Refused
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

JOB = f"{Path(__file__).parents[1] / 'jobs' / 'drifting.py'}:slowing"
SLOWED = 10  # the step after which one of two workers is slow
Train = Callable[..., Report]


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Train:
    def run(**options: Any) -> Report:
        return samestep.train(JOB, launcher=launcher, **{"plan": "data", "workers": 2, **options})

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> Report:
    return train(workers=1, settings={"usual": 0.0})


def test_a_slowed_worker_gets_fewer_shards_and_the_bits_stay(train: Train, alone: Report) -> None:
    """How soon, and how many: test_drift.py, whose seconds are given. Other load on this machine is a change too."""
    report = train()
    assert any(step > SLOWED and min(assign) < 4 for step, assign in report.deals), report.deals
    assert report.digest == alone.digest
    assert report.losses == alone.losses
    assert report.assign == (4, 4), "what the run began with"


@pytest.mark.parametrize("options", [{"rebalance": "off"}, {"assign": (4, 4), "workers": None}, {"codec": "int8@2"}])
def test_shards_stay_where_somebody_has_put_them(options: dict[str, Any], train: Train) -> None:
    assert not train(**options).deals


def test_on_deals_anew_what_somebody_has_dealt(train: Train, alone: Report) -> None:
    report = train(assign=(5, 3), workers=None, rebalance="on")
    assert report.deals
    assert report.digest == alone.digest


@pytest.mark.parametrize("options", [{"transport": "threads", "hosts": (1, 1)}, {"transport": "threads"}])
def test_hosts_and_threads_deal_anew_too(options: dict[str, Any], train: Train, alone: Report) -> None:
    report = train(**options)
    assert report.deals
    assert report.digest == alone.digest


def test_statistics_and_loader_workers_go_along(train: Train, tmp_path: Path) -> None:
    settings = {"normed": True, "loaders": 1, "steps": 40, "usual": 0.004}
    report = train(settings={**settings, "notes": str(tmp_path / "notes")})
    assert report.deals
    assert (tmp_path / "notes").read_text() == "1", "loaders of the shares before have ended"
    assert report.digest == train(workers=1, settings={**settings, "usual": 0.0}).digest


def test_a_worker_that_got_no_shard_is_tried_again_and_the_bits_stay(train: Train) -> None:
    """It is slow until the other one has done 300 shards, and tried when that has done 500 without it."""
    settings = {"after": 40, "until": 300, "slow": 100.0, "usual": 0.002, "steps": 120}
    report = train(settings=settings)
    assert any(min(assign) == 0 for _, assign in report.deals), report.deals
    assert min(report.deals[-1][1]) >= 3, report.deals
    assert report.digest == train(workers=1, settings={**settings, "usual": 0.0}).digest


def test_uneven_shares_and_three_workers_deal_anew(train: Train) -> None:
    settings = {"after": 30, "slow": 12.0, "usual": 0.003, "steps": 32}
    report = train(workers=3, shards=7, settings=settings, transport="threads", hosts=(2, 1))
    assert report.deals
    assert report.digest == train(workers=1, shards=7, settings={**settings, "usual": 0.0}).digest


def test_a_run_goes_on_from_a_checkpoint_after_a_deal(train: Train, alone: Report, tmp_path: Path) -> None:
    first = train(steps=28, checkpoint=tmp_path)
    assert first.deals
    assert train(steps=32, checkpoint=tmp_path, resume=True, settings={"usual": 0.0}).digest == alone.digest


def test_what_is_dealt_anew_is_said() -> None:
    shown = CliRunner().invoke(main, ["train", JOB, "--plan", "data", "--workers", "2", "--rebalance", "on"])
    assert shown.exit_code == 0, shown.output
    assert "workers' speeds had changed" in shown.stderr


def test_what_cannot_be_dealt_anew_is_refused_where_it_is_asked_for(train: Train) -> None:
    with pytest.raises(Refused, match="the plan has stages or slices"):
        train(plan="pipeline", rebalance="on")
    with pytest.raises(Refused, match="codec int8"):
        train(codec="int8@2", rebalance="on")
    with pytest.raises(Refused, match="it is on or off"):
        train(rebalance="sometimes")

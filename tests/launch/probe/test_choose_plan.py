"""`--plan auto`: when a plan is looked for, on what it stands, and that nothing but the time depends on it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import samestep
from jobs import grids
from samestep.errors import PlanRefused
from samestep.job.report import Report
from samestep.launch.probe import choose_plan, measure_job
from samestep.launch.probe.choose_plan import freedom_for, max_workers, pick_plan, this_machine, why_no_search
from samestep.launch.probe.profiling import profiled
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics, numerics_for, with_numerics
from samestep.numerics import random_streams
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan
from samestep.planner.search.decision import decide

torch.set_num_threads(1)  # this process is forked

LONG = dataclasses.replace(grids.mlp(), steps=choose_plan.SHORT, epochs=None, shards=8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fewest steps, and a cache that nobody has used."""
    monkeypatch.setattr(measure_job, "BUDGET", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def asked(**fields: Any) -> Request:
    return Request.of(**{"run": "test", "default_workers": 2, **fields})


def decide_for(request: Request, job: samestep.Job = LONG) -> Plan | None:
    chosen = chosen_numerics(request)
    job = with_numerics(job, chosen, request)
    random_streams.enter(job.seed, "model")
    _, decision = pick_plan(request, job, job.build_model(), chosen)
    return None if decision is None else decision.pick.plan


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {"steps": choose_plan.SHORT - 1}),
        ({}, {"data": None}),
        ({"plan_is_asked": True}, {"data": None}),
        ({"assign": (4, 4)}, {}),
        ({"transport": "threads"}, {}),
        ({"device": "cuda"}, {}),
        ({"memory_limit": 10**9}, {}),
        ({"plan_is_asked": True}, {"sync": "local(4)"}),
    ],
    ids=str,
)
def test_no_plan_is_looked_for(fields: dict[str, Any], changed: dict[str, Any]) -> None:
    assert why_no_search(asked(**fields), dataclasses.replace(LONG, **changed)) is not None


@pytest.mark.parametrize(
    ("fields", "steps"), [({}, choose_plan.SHORT), ({"plan_is_asked": True}, 1), ({"slices": 4}, 1)], ids=str
)
def test_a_plan_is_looked_for_where_it_pays_or_was_asked_for(fields: dict[str, Any], steps: int) -> None:
    assert why_no_search(asked(**fields), dataclasses.replace(LONG, steps=steps)) is None


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_number_of_workers_is_kept(workers: int) -> None:
    plan = decide_for(asked(workers=workers))
    assert plan is not None
    assert plan.workers == workers


def test_the_numbers_are_the_requests_and_the_jobs() -> None:
    plan = decide_for(asked(seed=5, shards=4, threads=1))
    assert plan is not None
    assert plan.numerics == Numerics(seed=5, shards=4, threads=1)
    sliced = decide_for(asked(slices=2))
    assert sliced is not None
    assert dataclasses.replace(sliced.numerics, slices="none") == Numerics(shards=8)


def test_stale_gradients_are_not_for_stages() -> None:
    assert freedom_for(asked(), 2, Numerics(shards=2), ()).may_cut
    assert not freedom_for(asked(), 2, Numerics(shards=2, sync="stale(1)"), ()).may_cut


def test_only_slices_let_more_workers_than_shards_take_part() -> None:
    numerics = Numerics(shards=2)
    with pytest.raises(PlanRefused, match="3 workers are more than the 2 shards of a batch"):
        freedom_for(asked(workers=3), 3, numerics, ())
    assert freedom_for(asked(workers=3, slices=4), 3, numerics, ()).workers == (3,)
    assert max_workers(asked(default_workers=8), numerics) == 2
    assert freedom_for(asked(default_workers=8), 2, numerics, ()).workers == (1, 2)


def test_synchronised_batchnorm_is_neither_cut_nor_sliced() -> None:
    job = dataclasses.replace(grids.cnn(), sync_batchnorm=True, steps=choose_plan.SHORT, epochs=None)
    plan = decide_for(asked(workers=2, slices=4), job)
    assert plan is not None
    assert plan.stages == ()


def profile(job: samestep.Job = LONG, file: Path | None = None, **fields: Any) -> Any:
    numerics = Numerics(**{"shards": 8, "codec": job.codec, **fields})
    random_streams.enter(job.seed, "model")
    return profiled(job, job.build_model(), numerics, 2, None, None if file is None else str(file), "job")


def test_a_profile_is_measured_once(tmp_path: Path) -> None:
    once = profile()
    (file,) = (tmp_path / "cache" / "samestep").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert profile() == once, "times would differ"
    assert profile(dataclasses.replace(LONG, seed=9, batch_size=LONG.batch_size)) == once
    assert [file] == list(file.parent.iterdir())
    other = profile(dataclasses.replace(LONG, codec="int8:256@1"))
    assert other.conditions.codec == "int8:256@1"
    assert len(list(file.parent.iterdir())) == 2


def test_a_named_profile_of_another_ground_or_job_is_refused_with_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    once = profile(file=file)
    assert profile(file=file) == once
    assert not (tmp_path / "cache").exists()
    with pytest.raises(PlanRefused, match=r"--profile .*own\.json was measured with shards 8, this run has 4"):
        profile(dataclasses.replace(LONG, shards=4), file, shards=4)
    with pytest.raises(PlanRefused, match=r"--profile .*own\.json is the profile of a job with other layers"):
        profile(dataclasses.replace(LONG, model=lambda: torch.nn.Linear(18, 5)), file)
    fields = json.loads(file.read_text())
    fields["ground"]["torch"] = "1.0"
    file.write_text(json.dumps(fields))
    with pytest.raises(PlanRefused, match=r"was measured with torch 1\.0, this run has 2\."):
        profile(file=file)
    file.write_text("{}")
    with pytest.raises(PlanRefused, match=r"own\.json is no profile"):
        profile(file=file)


def test_a_cache_that_cannot_be_written_is_none_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder belongs")
    assert profile().job == "job"
    with pytest.raises(PlanRefused, match=r"--profile .*own\.json cannot be written: .*; name another file"):
        profile(file=tmp_path / "cache" / "own.json")


class Fussy(grids.MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")


class Broken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([Fussy()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[0](x)


def test_a_layer_that_raises_is_refused_once_with_its_name_and_place() -> None:
    with pytest.raises(PlanRefused) as refused:
        profile(dataclasses.replace(LONG, model=Broken))
    text = str(refused.value)
    assert text.startswith("the job cannot be measured: layer parts.0 failed at step 0: ValueError: not today")
    assert "test_choose_plan.py" in text
    assert text.endswith("mend it, or name a plan (--plan data)")
    assert text.count("ValueError") == 1


def test_predictions_and_rankings_stand_on_the_profile() -> None:
    found = profile()
    numerics = numerics_for(asked(), LONG, {})
    decision = decide(found, this_machine(found, 2), numerics, freedom_for(asked(), 2, numerics, ()))
    said = decision.prediction
    assert said.low < said.seconds < said.high
    assert sum(said.parts.values()) == pytest.approx(said.seconds)
    assert len(said.actions) == decision.pick.plan.workers


@pytest.mark.parametrize("family", ["mlp", "gpt"])
def test_auto_gives_the_digest_of_one_worker(
    family: str, train: Callable[..., Report], alone: Callable[..., Report], tmp_path: Path
) -> None:
    found = train(family, plan="auto", profile=str(tmp_path / "profile.json"))
    assert found.digest == alone(family, plan="data").digest
    assert found.prediction is not None
    again = train(family, plan="auto", workers=2, profile=None)
    assert (again.workers, again.digest) == (2, found.digest)


def test_short_runs_are_not_measured(train: Callable[..., Report], cache: Path) -> None:
    before = sorted(cache.rglob("*"))
    found = train("mlp")
    assert found.prediction is None
    assert sorted(cache.rglob("*")) == before

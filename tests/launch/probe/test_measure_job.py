"""What samples say about costs: by hand on made-up samples, and on a real job."""

import dataclasses
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import grids
from samestep.launch.probe import measure_job
from samestep.launch.probe.measure_job import (
    SIZES,
    dense_costs,
    gap_of,
    passing_of,
    plans_to_probe,
    spread_of,
    step_seconds,
)
from samestep.launch.probe.probe import ActionTiming, Probe
from samestep.numerics import random_streams
from samestep.numerics.numerics import Numerics
from samestep.numerics.reduction_tree import local_plan
from samestep.plan.plan import Plan
from samestep.planner.cost.measured_costs import SCALARS, Pair
from samestep.setup.network_measurements import survey
from samestep.setup.parallelize import prepare

torch.set_num_threads(1)  # this process is forked

times = st.floats(1e-6, 1.0)


def sample(
    action: str, seconds: float, shard: int = -1, segment: int = -1, step: int = 1, at: float = 0.0
) -> ActionTiming:
    return ActionTiming(step, action, segment, shard, at, at + seconds, 0.0)


def passes(rank: int, shares: tuple[int, ...], forward: float, backward: float, add: float) -> list[ActionTiming]:
    """What a worker would show whose every addition takes `add`."""
    start = sum(shares[:rank])
    own = range(start, start + shares[rank])
    folds = local_plan(own, sum(shares)).folds
    return [
        *(sample("Forward", forward, shard, 0) for shard in own),
        *(sample("Backward", backward + add * len(f.into), s, 0) for s, f in zip(own, folds, strict=True)),
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), times, times, st.floats(0, 1.0))
def test_what_is_added_is_told_apart_from_backward(
    shares: tuple[int, ...], forward: float, backward: float, add: float
) -> None:
    samples = [passes(rank, shares, forward, backward, add) for rank in range(len(shares))]
    found, per_byte = dense_costs(Probe(Plan(Numerics(shards=sum(shares)), shares), samples), 0, shares, 100)
    assert found.forward == pytest.approx(forward)
    assert found.backward == pytest.approx(backward)
    ends = list(accumulate(shares))
    held = [range(end - share, end) for end, share in zip(ends, shares, strict=True)]
    adds = any(fold.into for own in held for fold in local_plan(own, sum(shares)).folds)
    assert per_byte * 100 == pytest.approx(add if adds else 0.0, abs=1e-9)


def test_of_shards_in_lockstep_each_takes_its_share() -> None:
    plan = Plan(Numerics(shards=8, sync_batchnorm=True), (5, 3))
    samples = [[sample("Lockstep", 5.0, 0)], [sample("Lockstep", 3.0, 5)]]
    assert dense_costs(Probe(plan, samples), 0, (5, 3), 100) == (Pair(0.0, 1.0), 0.0)


@given(times, times)
def test_passing_is_a_line_through_what_was_measured(fixed: float, per_byte: float) -> None:
    found = passing_of([fixed + per_byte * size for size in SIZES])
    assert found.send == found.receive
    assert found.send + found.receive == pytest.approx(fixed, abs=1e-6 * per_byte * SIZES[-1])
    assert found.send_byte + found.receive_byte == pytest.approx(per_byte)


def test_passing_is_never_less_than_nothing() -> None:
    assert min(dataclasses.astuple(passing_of([3.0, 2.0, 1.0]))) >= 0


def test_gaps_and_steps_are_of_steps_that_follow_one_another() -> None:
    """Step 3 had a short batch and was left out."""
    rows = [
        sample(action, 1.0, step=step, at=at + begin)
        for step, begin in ((1, 0.0), (2, 10.0), (4, 100.0))
        for at, action in enumerate(("Load", "Publish"))
    ]
    assert gap_of(rows) == 8.0
    assert step_seconds(rows) == [2.0, 2.0, 2.0]
    assert gap_of(rows[:2]) == 0.0
    assert spread_of([1.0]) == 0.0


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_costs_of_a_job_are_complete_and_positive(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_job, "BUDGET", 0.0)  # the fewest steps
    job = dataclasses.replace(getattr(grids, family)(), shards=8)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    chain = survey(job, prepare(job, job.build_model()), 4)
    found = measure_job.measure(job, chain, Numerics(shards=8), model, 2)
    assert (found.alone.workers, found.together.workers) == (1, 2)
    for table in (found.alone, found.together):
        assert len(table.units) == len(chain.units)
        assert len(table.regions) == len(table.own) == len(table.rests) == len(chain.regions)
        assert min(min(p.forward, p.backward) for p in (table.whole, *table.units, *table.regions)) > 0
        assert all(getattr(table, name) >= 0 for name in SCALARS)
        assert table.load > 0
        assert table.update > 0
        assert (table.clip > 0) == (job.clip_grad_norm is not None)
    assert found.alone.own == tuple(region.slices for region in chain.regions)
    assert found.passing.send > 0


def test_the_plans_that_are_probed_keep_the_numbers() -> None:
    job = grids.mlp()
    random_streams.enter(job.seed, "model")
    chain = survey(job, prepare(job, job.build_model()), 4)
    numerics = Numerics(shards=8, seed=3, join=2, codec="int8:256@1")
    uncut, finest, sliced = plans_to_probe(chain, numerics, 2)
    assert uncut.numerics == finest.numerics == numerics
    assert [stage.first for stage in finest.stages] == ["", *(unit.name for unit in chain.units[1:])]
    assert dataclasses.replace(sliced.numerics, slices="none", join=2) == numerics

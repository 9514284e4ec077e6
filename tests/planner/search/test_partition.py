"""The searches find what trying all splits finds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.chains import all_splits, best, chains, equal_rows, free_replication, fullness, replications, rows, seconds
from samestep.errors import PlanRefused
from samestep.planner.search.bisection import fewest_splits
from samestep.planner.search.partition import best_partition, group_sizes, partition
from samestep.planner.search.pipeline_costs import LayerCosts, PipelineCosts, Replication, WorkerRow, ring_all_reduce
from samestep.planner.search.stage_costs import NothingFits, Partition

microbatches = st.integers(1, 4)


@given(chains(), rows(), microbatches, replications)
def test_the_exact_search_finds_the_best_of_all_splits(
    chain: LayerCosts, row: WorkerRow, m: int, replication: Replication
) -> None:
    found = partition(chain, row, m, replication)
    least = best(PipelineCosts(chain, row, m, replication), chain)
    assert isinstance(found, Partition) == (least < math.inf)
    if isinstance(found, Partition):
        spans = found.best.stages
        assert found.best.bottleneck == pytest.approx(least)
        assert seconds(chain, row, m, replication, spans) == pytest.approx(least)
        assert fullness(chain, row, m, spans) <= 1
        assert not found.pruned


@given(chains(), rows(), microbatches, replications)
def test_the_runners_up_are_the_best_for_their_number_of_stages(
    chain: LayerCosts, row: WorkerRow, m: int, replication: Replication
) -> None:
    found = partition(chain, row, m, replication)
    if isinstance(found, Partition):
        costs = PipelineCosts(chain, row, m, replication)
        of = {len(split.stages): split.bottleneck for split in (found.best, *found.runners_up)}
        for stages in range(1, min(len(chain.forward), len(row.speeds)) + 1):
            assert of.get(stages, math.inf) == pytest.approx(best(costs, chain, stages))


@given(chains(), rows(), microbatches)
def test_where_nothing_fits_the_least_memory_that_would_is_named(chain: LayerCosts, row: WorkerRow, m: int) -> None:
    found = partition(chain, row, m, free_replication)
    if isinstance(found, NothingFits):
        splits = all_splits(len(chain.forward), len(row.speeds))
        assert found.factor == pytest.approx(min(fullness(chain, row, m, spans) for spans in splits))
        assert found.factor > 1
        larger = WorkerRow(
            row.speeds, tuple(found.factor * 1.0001 * limit for limit in row.memory), *list(vars(row).values())[2:]
        )
        assert isinstance(partition(chain, larger, m, free_replication), Partition)


@given(chains(), equal_rows(), microbatches, st.sampled_from([free_replication, ring_all_reduce(2.0, 0.5)]))
def test_the_search_for_many_equal_workers_agrees(
    chain: LayerCosts, row: WorkerRow, m: int, replication: Replication
) -> None:
    found = best_partition(PipelineCosts(chain, row, m, replication), dense=0)
    least = best(PipelineCosts(chain, row, m, replication), chain)
    assert isinstance(found, Partition) == (least < math.inf)
    if isinstance(found, Partition):
        assert found.best.bottleneck == pytest.approx(least, rel=1e-5)
        assert seconds(chain, row, m, replication, found.best.stages) == pytest.approx(least, rel=1e-5)
        assert fullness(chain, row, m, found.best.stages) <= 1 + 1e-12
        assert found.best.stages[-1].workers.stop <= len(row.speeds)
    else:
        larger = WorkerRow.equal(len(row.speeds), 1.0, memory=row.memory[0] * found.factor * 1.0001)
        assert isinstance(partition(chain, larger, m, free_replication), Partition)


@given(chains(), equal_rows(), microbatches, st.integers(1, 5))
def test_no_more_stages_than_asked_for(chain: LayerCosts, row: WorkerRow, m: int, most: int) -> None:
    costs = PipelineCosts(chain, row, m, free_replication)
    least = min(best(costs, chain, stages) for stages in range(1, most + 1))
    for dense in (1e9, 0):
        found = best_partition(costs, most, dense)
        assert isinstance(found, Partition) == (least < math.inf)
        if isinstance(found, Partition):
            assert len(found.best.stages) <= most
            assert found.best.bottleneck == pytest.approx(least, rel=1e-5)


def test_runners_up_of_the_search_for_many_equal_workers() -> None:
    layers = 12
    chain = LayerCosts((1.0,) * layers, (2.0,) * layers, *[(1.0,) * layers] * 4)
    splits = fewest_splits(PipelineCosts(chain, WorkerRow.equal(16, 100.0), 8, ring_all_reduce(1.0)), range(1, 17), 12)
    exact = best_partition(PipelineCosts(chain, WorkerRow.equal(16, 100.0), 8, ring_all_reduce(1.0)))
    assert isinstance(exact, Partition)
    of = {len(split.stages): split.bottleneck for split in (exact.best, *exact.runners_up)}
    assert {len(split.stages) for split in splits} >= {1, 2, 4, 8}
    for split in splits:
        assert split.bottleneck == pytest.approx(of[len(split.stages)], rel=2e-3)


@given(st.integers(0, 1000))
def test_uneven_workers_in_runs_get_a_split_that_is_what_it_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    chain = LayerCosts(*(tuple(draw.uniform(0, 1, 6)) for _ in range(6)))
    row = WorkerRow(tuple(draw.uniform(1, 2, 9)), (50.0,) * 9, (10.0,) * 8, (0.0,) * 8)
    found = best_partition(PipelineCosts(chain, row, 4, ring_all_reduce(10.0)), dense=2e4)
    assert isinstance(found, Partition)
    assert "runs of workers" in found.pruned
    assert seconds(chain, row, 4, ring_all_reduce(10.0), found.best.stages) == pytest.approx(found.best.bottleneck)


def test_a_long_chain_on_many_uneven_workers_is_cut_at_even_places() -> None:
    draw = np.random.default_rng(0)
    chain = LayerCosts(*(tuple(draw.uniform(0, 1, 300)) for _ in range(6)))
    row = WorkerRow(tuple(draw.uniform(1, 2, 60)), (500.0,) * 60, (10.0,) * 59, (0.0,) * 59)
    found = best_partition(PipelineCosts(chain, row, 4, ring_all_reduce(100.0)), dense=1e7)
    assert isinstance(found, Partition)
    assert "of the 299 cuts" in found.pruned
    assert seconds(chain, row, 4, ring_all_reduce(100.0), found.best.stages) == pytest.approx(found.best.bottleneck)
    assert fullness(chain, row, 4, found.best.stages) <= 1 + 1e-12


def test_group_sizes_are_all_when_there_is_room_for_them() -> None:
    assert group_sizes(20, 100) == list(range(1, 21))
    assert group_sizes(1, 1) == [1]
    assert group_sizes(64, 14) == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64]


def test_a_slow_worker_in_the_way_gets_less() -> None:
    chain = LayerCosts((1.0,) * 6, (0.0,) * 6, *[(0.0,) * 6] * 4)
    row = WorkerRow((1.0, 0.5, 1.5), (math.inf,) * 3, (1.0,) * 2, (0.0,) * 2)
    found = partition(chain, row, 1, free_replication, max_stages=3)
    assert isinstance(found, Partition)
    three = next(split for split in (found.best, *found.runners_up) if len(split.stages) == 3)
    assert [span.last - span.first + 1 for span in three.stages] == [2, 1, 3]
    assert str(three) == "2 s: layers 0-1 on worker 0; layers 2-2 on worker 1; layers 3-5 on worker 2"


def test_what_cannot_be_a_chain_is_refused() -> None:
    with pytest.raises(PlanRefused, match="one value of each kind for every layer"):
        LayerCosts((1.0,), (1.0, 2.0), (1.0,), (1.0,), (1.0,), (1.0,))
    with pytest.raises(PlanRefused, match="backward has the value -1"):
        LayerCosts((1.0,), (-1.0,), (1.0,), (1.0,), (1.0,), (1.0,))
    with pytest.raises(PlanRefused, match="a link between neighbours"):
        WorkerRow((1.0, 1.0), (1.0, 1.0), (), ())
    with pytest.raises(PlanRefused, match="speeds has the value 0"):
        WorkerRow((0.0,), (1.0,), (), ())
    with pytest.raises(PlanRefused, match="0 microbatches"):
        partition(LayerCosts(*[(1.0,)] * 6), WorkerRow.equal(1, 1.0), 0, free_replication)


def test_nothing_fits_says_what_would() -> None:
    chain = LayerCosts((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, (100.0,) * 4, (0.0,) * 4, (0.0,) * 4)
    found = partition(chain, WorkerRow.equal(2, 1.0, memory=50.0), 1, free_replication)
    assert isinstance(found, NothingFits)
    assert "needs 4 times the workers' memory" in str(found)

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from samestep.data.ordered import Ordered, OrderedRows
from samestep.data.row_order import RowOrder
from samestep.data.rows import as_rows
from samestep.errors import JobRefused, TrainingFailed


class Numbers:
    """Samples (epoch, row, a draw); notes what it was asked for, and how many samples it made."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.asked, self.made = num_rows, list[tuple[int, int]](), 0

    def __call__(self, epoch: int, start: int) -> Iterator[Any]:
        self.asked.append((epoch, start))
        return self.samples(epoch, start)

    def samples(self, epoch: int, start: int) -> Iterator[Any]:
        for row in range(start, self.num_rows):
            self.made += 1
            yield epoch, row, torch.rand(1)


def requests_of(order: RowOrder, own: Callable[[int], bool], first: int, steps: int) -> list[tuple[int, Any]]:
    """The halves of batches that `own` says are ours."""
    found = []
    for step, (epoch, batch) in zip(range(first, first + steps), order.batches(first), strict=False):
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        found += [(epoch, half) for i, half in enumerate(halves) if len(half) and own(2 * step + i)]
    return found


@given(st.integers(4, 40), st.integers(2, 12), st.integers(0, 9), st.sets(st.integers(0, 3)), st.booleans())
def test_each_worker_gets_its_rows_whatever_others_get(
    num_rows: int, batch_size: int, first: int, shares: set[int], drop_last: bool
) -> None:
    order = RowOrder(num_rows, min(batch_size, num_rows), 0, shuffle=False, drop_last=drop_last)
    draws = {}
    for own in (lambda half: half % 4 in shares, lambda half: half % 4 not in shares, lambda half: True):
        source = Numbers(num_rows)
        requests = requests_of(order, own, first, 8)
        batches = list(as_rows(Ordered(source, num_rows), "data", 3, None, 0).take(iter(requests)))
        for (epoch, rows), (epochs, found, values) in zip(requests, batches, strict=True):
            assert found.tolist() == rows.tolist()
            assert set(epochs.tolist()) == {epoch}
            for row, value in zip(found.tolist(), values.tolist(), strict=True):
                assert draws.setdefault((epoch, row), value) == value
        starts: dict[int, int] = {}
        for epoch, rows in requests:
            starts.setdefault(epoch, int(rows[0]))
        assert source.asked == list(starts.items())  # once per epoch, at the first row that is needed
    assert len(set(map(tuple, draws.values()))) == len(draws)


@pytest.mark.parametrize("loaders", [0, 1, 2])
def test_loader_workers_give_the_same_rows_and_draws(loaders: int) -> None:
    order = RowOrder(10, 4, 0, shuffle=False)
    wanted = as_rows(Ordered(Numbers(10), 10), "data", 0, None, 0).take(order.batches(1))
    found = as_rows(Ordered(Numbers(10), 10), "data", 0, None, loaders).take(order.batches(1))
    for _, a, b in zip(range(7), wanted, found, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_samples_may_be_joined_in_a_way_of_their_own() -> None:
    rows = as_rows(Ordered(Numbers(9), 9), "data", 0, lambda samples: [row for _, row, _ in samples], 0)
    assert list(rows.take(iter([(2, [3, 4]), (2, [7])]))) == [[3, 4], [7]]


def test_an_iterator_need_not_end() -> None:
    data = Ordered(lambda epoch, start: count(start), 5)
    batches = as_rows(data, "data", 0, None, 0).take(RowOrder(5, 3, 0, shuffle=False).batches(0))
    assert [next(batches).tolist() for _ in range(4)] == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]


def test_held_out_rows_are_those_of_epoch_0() -> None:
    source = Numbers(6)
    rows = as_rows(Ordered(source, 6), "evaluate", 0, None, 0)
    for step in (10, 20):
        assert [batch[1].tolist() for batch in rows.take(iter([(step, range(2)), (step, range(4, 6))]))] == [
            [0, 1],
            [4, 5],
        ]
    assert source.asked == [(0, 0), (0, 0)]


def test_an_early_end_is_named_by_row_and_epoch() -> None:
    rows = as_rows(Ordered(Numbers(7), 9), "data", 0, None, 0)
    with pytest.raises(TrainingFailed, match=r"before row 7 of epoch 4: make\(4, 2\) gave 5 samples.*promises 7"):
        list(rows.take(iter([(4, [2, 3]), (4, [8])])))


def test_what_the_data_set_raises_arrives() -> None:
    def broken(epoch: int, start: int) -> Iterator[int]:
        yield 1
        raise KeyError("no such shard")

    for loaders in (0, 1):
        with pytest.raises(KeyError, match="no such shard"):
            list(as_rows(Ordered(broken, 5), "data", 0, None, loaders).take(iter([(0, [0, 1])])))


@pytest.mark.parametrize(
    ("make", "num_rows", "words"),
    [
        ([1, 2], 2, "given a list"),
        (Numbers(3), 0, "num_rows=0"),
        (Numbers(3), 2.5, "num_rows=2.5"),
        (Numbers(3), True, "num_rows=True"),
    ],
)
def test_bad_arguments_are_refused(make: Any, num_rows: Any, words: str) -> None:
    with pytest.raises(JobRefused, match=words):
        Ordered(make, num_rows)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield 0


@pytest.mark.parametrize("data", [Stream(), (i for i in range(3))])
def test_an_iterable_data_set_is_told_the_way_out(data: Any) -> None:
    with pytest.raises(JobRefused, match=r"by number.*samestep\.Ordered\(make, num_rows\)"):
        as_rows(data, "data", 0, None, 0)


def tried(data: Ordered) -> OrderedRows:
    rows = OrderedRows(data, "data", 0, list, 0)
    rows.is_tried = True
    return rows


def test_rows_beyond_the_promised_ones_are_reported_once() -> None:
    rows = tried(Ordered(lambda epoch, start: range(start, 12), 10))
    with pytest.warns(UserWarning, match="Job.data has 2 rows more than num_rows=10 promises"):
        assert list(rows.take(iter([(0, [7, 8, 9]), (1, [8, 9])]))) == [[7, 8, 9], [8, 9]]
    assert list(tried(Ordered(lambda epoch, start: count(start), 10)).take(iter([(0, [8, 9])]))) == [[8, 9]]


def test_an_order_of_chance_is_refused() -> None:
    """Made again for the same epoch it gives other samples."""
    generator = random.Random(0)
    rows = tried(Ordered(lambda epoch, start: iter(generator.random, None), 10))
    with pytest.raises(JobRefused, match=r"row 2 of Job\.data was made twice from the same row and differs"):
        list(rows.take(iter([(0, [2, 3])])))

from itertools import islice

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.data.row_order import RowOrder

orders = st.builds(
    RowOrder,
    num_rows=st.integers(10, 200),
    batch_size=st.integers(1, 10),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)


def epochs_of(order: RowOrder, count: int) -> list[list[Tensor]]:
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for epoch, rows in islice(order.batches(0), count * order.batches_per_epoch):
        found[epoch].append(rows)
    return found


@given(orders)
def test_an_epoch_uses_every_row_exactly_once(order: RowOrder) -> None:
    dropped = order.num_rows % order.batch_size if order.drop_last else 0
    for batches in epochs_of(order, 2):
        assert len(batches) == order.batches_per_epoch
        rows = torch.cat(batches).tolist()
        assert len(rows) == len(set(rows)) == order.num_rows - dropped
        assert set(rows) <= set(range(order.num_rows))
        assert all(len(batch) == order.batch_size for batch in batches[:-1])


@given(orders, st.integers(0, 60))
def test_the_batches_go_on_from_any_step(order: RowOrder, first: int) -> None:
    whole = list(islice(order.batches(0), first + 5))
    for step, (a, b) in enumerate(zip(whole[first:], order.batches(first), strict=False), first):
        assert a[0] == b[0] == step // order.batches_per_epoch
        assert torch.equal(a[1], b[1])
        assert len(a[1]) == order.batch_rows(step)


def test_epochs_and_seeds_have_permutations_of_their_own() -> None:
    order = RowOrder(1000, 10, seed=0)
    found = [tuple(o.permutation(e).tolist()) for o in (order, RowOrder(1000, 7, seed=1)) for e in range(3)]
    assert len(set(found)) == 6
    assert torch.equal(order.permutation(1), RowOrder(1000, 250, seed=0, drop_last=True).permutation(1))


def test_without_shuffling_rows_come_in_their_order() -> None:
    order = RowOrder(7, 3, seed=0, shuffle=False)
    assert [rows.tolist() for _, rows in islice(order.batches(0), 4)] == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]


def test_the_permutation_leaves_the_default_generator_alone() -> None:
    before = torch.default_generator.get_state()
    RowOrder(100, 10, seed=3).permutation(4)
    assert torch.equal(torch.default_generator.get_state(), before)

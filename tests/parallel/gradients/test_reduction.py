"""Partial sums of several workers, brought together: bit for bit the tree over the shards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.numerics.addition_order import addition_order
from samestep.numerics.numerics import Numerics
from samestep.numerics.reduction_tree import Node, local_plan, tree_sum
from samestep.parallel.gradients.layout import CHUNK, Layout, share_pieces, storage_order
from samestep.parallel.gradients.ownership import Ownership, num_published, stage_ownership
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.plan.plan import Plan

assignments = st.lists(st.integers(0, 5), min_size=2, max_size=5).filter(any).map(tuple)


def layout(*, large: bool = False) -> Layout:
    """A channels-last weight, a vector, a weight with a second name; `large`: cut into pieces."""
    shape = (40, 4, 16, 32) if large else (3, 4, 2, 5)
    conv = nn.Parameter(torch.zeros(shape).to(memory_format=torch.channels_last))
    bias, tied = nn.Parameter(torch.zeros(130)), nn.Parameter(torch.zeros(6, 11))
    return Layout([("conv", conv, None), ("bias", bias, None), ("tied", tied, None), ("head", nn.Parameter(tied), 2)])


def gradient(of: Layout, entry: int, shard: int) -> Tensor:
    """A shard's gradient, of magnitudes that make every other order of addition visible."""
    param = of.entries[entry].param
    generator = torch.Generator().manual_seed(1000 * shard + entry)
    values = torch.randn(param.shape, generator=generator) * 10 ** torch.randint(
        -4, 5, param.shape, generator=generator
    )
    return torch.empty_like(param, requires_grad=False).copy_(values)


def homes(of: Layout, plan: Plan) -> list[Ownership]:
    """Every parameter on every worker."""
    return [stage_ownership(plan, 0)] * len(of.entries)


def published(of: Layout, plan: Plan, num_shards: int) -> list[list[Tensor]]:
    """Every worker's slots after backward; those it does not use hold what was there before."""
    slots = []
    for rank in range(plan.workers):
        mine = [
            torch.full((of.nbytes,), 99, dtype=torch.uint8)
            for _ in range(num_published(plan, {stage_ownership(plan, 0)}, rank))
        ]
        for slot, node in zip(mine, local_plan(plan.shards_of(rank, num_shards), num_shards).left, strict=False):
            stop = min((node.index + 1) << node.level, num_shards)
            for entry in range(len(of.entries)):
                shards = [gradient(of, entry, shard) for shard in range(node.first_shard(), stop)]
                of.view(slot, entry).copy_(tree_sum(shards))
        slots.append(mine)
    return slots


def reduced(of: Layout, plan: Plan, num_shards: int, scale: float, *, whole: bool = False) -> dict[int, Tensor]:
    """The summed gradient of every entry that holds values, put together from the owners' pieces."""
    slots = published(of, plan, num_shards)
    shares = share_pieces(of, plan.workers, whole=whole)
    reductions = [TreeReduction(of, homes(of, plan), rank, pieces, slots) for rank, pieces in enumerate(shares)]
    for reduction in reversed(reductions):  # in whatever order they get to it
        reduction.sum_pieces(num_shards, scale)
    totals = {i: torch.full((entry.param.numel(),), torch.nan) for i, entry in of.owners()}
    for reduction, pieces in zip(reductions, shares, strict=True):
        for piece in pieces:
            totals[piece.entry][piece.start : piece.stop] = reduction.total(piece)
    return totals


def check(of: Layout, plan: Plan, num_shards: int, scale: float = 1.0, *, whole: bool = False) -> None:
    found = reduced(of, plan, num_shards, scale, whole=whole)
    for entry, total in found.items():
        names = [entry, *of.aliases(entry)]
        sums = [tree_sum([gradient(of, name, shard) for shard in range(num_shards)]) for name in names]
        scaled = [value if scale == 1.0 else value * scale for value in sums]
        expected = scaled[0] + scaled[1] if len(scaled) > 1 else scaled[0]
        assert torch.equal(total, storage_order(expected)), of.entries[entry].name


@given(assign=assignments, scale=st.sampled_from([1.0, 1 / 3, 0.001]), whole=st.booleans(), data=st.data())
def test_the_sum_of_all_workers_is_the_tree_over_the_shards(
    assign: tuple[int, ...], scale: float, whole: bool, data: st.DataObject
) -> None:
    num_shards = data.draw(st.integers(1, sum(assign)))
    check(layout(), Plan(Numerics(shards=sum(assign)), assign), num_shards, scale, whole=whole)


@pytest.mark.parametrize("assign", [(2, 2), (5, 3), (6, 1, 1), (1, 0, 4)])
def test_pieces_of_large_parameters_too(assign: tuple[int, ...]) -> None:
    of = layout(large=True)
    assert of.entries[0].param.numel() > 2 * CHUNK
    assert any(piece.start for share in share_pieces(of, len(assign), whole=False) for piece in share)
    check(of, Plan(Numerics(shards=sum(assign)), assign), sum(assign))


def test_one_reduction_serves_short_batches_and_full_ones() -> None:
    """Epochs end with fewer shards; what was prepared for one number of shards is not used for another."""
    of, plan = layout(), Plan(Numerics(shards=8), (5, 3))
    pieces = share_pieces(of, 2, whole=False)
    slots = published(of, plan, 8)
    reductions = [TreeReduction(of, homes(of, plan), rank, pieces[rank], slots) for rank in range(2)]
    for num_shards in (8, 3, 8, 1, 6):
        for mine, fresh in zip(slots, published(of, plan, num_shards), strict=True):
            for slot, content in zip(mine, fresh, strict=True):
                slot.copy_(content)
        for rank, reduction in enumerate(reductions):
            reduction.sum_pieces(num_shards, 1.0)
            for piece in pieces[rank]:
                names = [piece.entry, *of.aliases(piece.entry)]
                total = [tree_sum([gradient(of, name, s) for s in range(num_shards)]) for name in names]
                expected = storage_order(total[0] + total[1] if len(total) > 1 else total[0])
                assert torch.equal(reduction.total(piece), expected[piece.start : piece.stop])


def test_a_worker_reads_and_writes_only_its_own_pieces() -> None:
    of, plan = layout(), Plan(Numerics(shards=2), (1, 1))
    slots = published(of, plan, 2)
    before = [[slot.clone() for slot in mine] for mine in slots]
    pieces = share_pieces(of, 2, whole=False)
    TreeReduction(of, homes(of, plan), 0, pieces[0], slots).sum_pieces(2, 0.5)
    own = {piece.entry for piece in pieces[0]}
    for entry in range(len(of.entries)):
        if entry not in own and of.entries[entry].tied_to not in own:
            for mine, old in zip(slots, before, strict=True):
                assert torch.equal(of.flat(mine[0], entry), of.flat(old[0], entry))


def test_a_worker_alone_publishes_nothing() -> None:
    plan = Plan(Numerics(shards=8), (8,))
    assert num_published(plan, {stage_ownership(plan, 0)}, 0) == 0


def test_equal_aligned_layouts_publish_one_slot_each() -> None:
    for assign in [(4, 4), (2, 2, 2, 2), (1,) * 8]:
        plan = Plan(Numerics(shards=8), assign)
        assert [num_published(plan, {stage_ownership(plan, 0)}, rank) for rank in range(plan.workers)] == [
            1
        ] * plan.workers


def test_nodes_that_do_not_cover_the_batch_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="do not cover 4 shards"):
        addition_order((Node(0, 0), Node(0, 2), Node(0, 3)), 4)


def test_workers_without_shards_publish_no_nodes() -> None:
    nodes, holders = stage_ownership(Plan(Numerics(shards=3), (0, 2, 0, 1)), 0).published(3)
    assert nodes == (Node(1, 0), Node(1, 1))
    assert [rank for rank, _ in holders] == [1, 3]

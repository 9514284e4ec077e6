from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.numerics.addition_order import addition_order
from samestep.numerics.numerics import Numerics
from samestep.numerics.reduction_tree import Node, fold_plan, local_plan, promoted, tree_sum
from samestep.parallel.execution.joint import join_sums, partial_sums
from samestep.parallel.gradients.ownership import num_published, stage_ownership
from samestep.plan.plan import Plan


@dataclass(frozen=True)
class Sum:
    """A sum that remembers in which order it was added."""

    text: str

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(f"({self.text}+{other.text})")


def tree(num_shards: int) -> str:
    """The tree as the design says it: node j of level l covers shards [j 2^l, (j+1) 2^l) below S."""

    def node(level: int, index: int) -> str | None:
        if index << level >= num_shards:
            return None
        if level == 0:
            return str(index)
        left, right = node(level - 1, 2 * index), node(level - 1, 2 * index + 1)
        return left if right is None else f"({left}+{right})"

    root = node((num_shards - 1).bit_length(), 0)
    assert root is not None
    return root


def folded(values: list[Sum], shards: range, num_shards: int) -> dict[int, Sum]:
    """What the slots of a worker hold after its shards have arrived one after the other."""
    plan = local_plan(shards, num_shards)
    slots: dict[int, Sum] = {}
    for value, fold in zip(values, plan.folds, strict=True):
        carry = value
        if not fold.into:
            slots[fold.slot] = carry
        for slot in fold.into:
            carry = slots[slot] = slots[slot] + carry
    assert all(slot < plan.num_slots for slot in slots)
    return slots


def over_workers(assign: tuple[int, ...], num_shards: int) -> Sum:
    """Local folds, then the additions of the published partial sums, as the workers of a plan do it."""
    plan = Plan(Numerics(shards=sum(assign)), assign)
    slots = {}
    for rank in range(plan.workers):
        shards = plan.shards_of(rank, num_shards)
        slots[rank] = folded([Sum(str(shard)) for shard in shards], shards, num_shards)
    nodes, holders = stage_ownership(plan, 0).published(num_shards)
    parts = [slots[rank][slot] for rank, slot in holders]
    for into, other in addition_order(nodes, num_shards):
        parts[into] = parts[into] + parts[other]
    return parts[0]


assignments = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any).map(tuple)


@pytest.mark.parametrize(
    ("num_shards", "expected"),
    [
        (1, "0"),
        (2, "(0+1)"),
        (3, "((0+1)+2)"),
        (4, "((0+1)+(2+3))"),
        (5, "(((0+1)+(2+3))+4)"),
        (6, "(((0+1)+(2+3))+(4+5))"),
        (7, "(((0+1)+(2+3))+((4+5)+6))"),
    ],
)
def test_the_tree_as_drawn(num_shards: int, expected: str) -> None:
    assert tree(num_shards) == expected
    assert tree_sum([Sum(str(shard)) for shard in range(num_shards)]).text == expected


@given(num_shards=st.integers(1, 200))
def test_tree_sum_is_the_recursive_definition(num_shards: int) -> None:
    assert tree_sum([Sum(str(shard)) for shard in range(num_shards)]).text == tree(num_shards)


@given(assign=assignments, data=st.data())
def test_the_tree_depends_on_the_shards_alone(assign: tuple[int, ...], data: st.DataObject) -> None:
    """Any assignment, also of a short batch with fewer shards, also with workers that have none."""
    num_shards = data.draw(st.integers(1, sum(assign)))
    assert over_workers(assign, num_shards).text == tree(num_shards)


@given(cuts=st.lists(st.integers(0, 40), max_size=6), num_shards=st.integers(1, 40))
def test_partial_sums_of_any_ranges_fold_to_the_root(cuts: list[int], num_shards: int) -> None:
    """Folding in two stages, as workers and owners do, ends in one node at the place of the root."""
    ends = [0, *sorted(min(cut, num_shards) for cut in cuts), num_shards]
    left = [node for a, b in pairwise(ends) for node in local_plan(range(a, b), num_shards).left]
    whole = fold_plan(tuple(left), num_shards)
    assert len(whole.left) == 1
    assert whole.left == local_plan(range(num_shards), num_shards).left
    assert whole.left[0].first_shard() == 0


@given(cuts=st.lists(st.integers(0, 40), max_size=6), total=st.integers(1, 40))
def test_partial_sums_of_any_holders_join_to_the_tree(cuts: list[int], total: int) -> None:
    """As the holders of a layer's slices do it; those without a slice too."""
    ends = [0, *sorted(min(cut, total) for cut in cuts), total]
    holders = [range(a, b) for a, b in pairwise(ends)]
    parts = [part for own in holders for part in partial_sums([Sum(str(leaf)) for leaf in own], own, total)]
    assert join_sums(parts, holders, total).text == tree(total)


def test_a_holder_gives_one_partial_sum_per_node_that_is_left() -> None:
    leaves = [Sum(str(leaf)) for leaf in range(8)]
    assert [part.text for part in partial_sums(leaves[:5], range(5), 8)] == ["((0+1)+(2+3))", "4"]
    assert [part.text for part in partial_sums(leaves[5:], range(5, 8), 8)] == ["5", "(6+7)"]
    assert partial_sums([], range(3, 3), 8) == []


@pytest.mark.parametrize("holders", [[range(5)], [range(2), range(2, 5)], [range(3), range(3, 4), range(4, 5)]])
def test_summands_are_left_alone(holders: list[range]) -> None:
    """A holder's one partial sum may be the very tensor that it gave away."""
    generator = torch.Generator().manual_seed(5)
    values = [torch.randn(50, generator=generator) for _ in range(5)]
    copies = [value.clone() for value in values]
    parts = [part for own in holders for part in partial_sums([values[k] for k in own], own, 5)]
    assert torch.equal(join_sums(parts, holders, 5), tree_sum(copies))
    assert all(torch.equal(a, b) for a, b in zip(values, copies, strict=True))


@given(level=st.integers(0, 5), size=st.integers(1, 40))
def test_an_aligned_block_publishes_one_partial_sum(level: int, size: int) -> None:
    """The reason why equal layouts cost what a ring costs."""
    for first in range(0, size, 1 << level):
        block = range(first, min(first + (1 << level), size))
        assert len(local_plan(block, size).left) == 1
        assert local_plan(block, size).num_slots <= level + 1


@given(assign=assignments)
def test_every_published_node_has_a_slot(assign: tuple[int, ...]) -> None:
    plan = Plan(Numerics(shards=sum(assign)), assign)
    for num_shards in range(1, sum(assign) + 1):
        for rank, slot in stage_ownership(plan, 0).published(num_shards)[1]:
            assert plan.workers == 1 or slot < num_published(plan, {stage_ownership(plan, 0)}, rank)


@given(level=st.integers(0, 6), index=st.integers(0, 60), num_shards=st.integers(1, 70))
def test_promotion_keeps_the_shards_that_a_node_covers(level: int, index: int, num_shards: int) -> None:
    def covered(node: Node) -> range:
        return range(node.first_shard(), min((node.index + 1) << node.level, num_shards))

    node = Node(level, index)
    if node.first_shard() < num_shards:
        assert covered(promoted(node, num_shards)) == covered(node)


@pytest.mark.parametrize("num_shards", [3, 5, 8])
def test_tree_sum_leaves_its_values_alone_and_differs_from_a_sum_in_a_row(num_shards: int) -> None:
    generator = torch.Generator().manual_seed(num_shards)
    values = [torch.randn(2_000, generator=generator) for _ in range(num_shards)]
    copies = [value.clone() for value in values]
    total = tree_sum(values)
    assert all(torch.equal(a, b) for a, b in zip(values, copies, strict=True))
    in_a_row = list(accumulate(values, torch.add))[-1]
    torch.testing.assert_close(total, in_a_row)
    assert torch.equal(total, in_a_row) == (num_shards == 3)


def test_the_publication_of_uneven_shares_as_drawn() -> None:
    nodes, holders = stage_ownership(Plan(Numerics(shards=8), (5, 3)), 0).published(8)
    assert nodes == (Node(2, 0), Node(0, 4), Node(0, 5), Node(1, 3))
    assert holders == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert addition_order(nodes, 8) == [(1, 2), (1, 3), (0, 1)]

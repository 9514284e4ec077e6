"""The reduction tree: the order in which shard gradients are added, no matter who computed them.

Node (level, index) covers shards [index * 2**level, (index + 1) * 2**level) below S; a child that
covers no shard is missing, and its sibling passes through. For S = 5:

    level 3               (3,0)
                         /     \\
    level 2         (2,0)       (2,1) = shard 4, passed through twice
                   /     \\
    level 1    (1,0)     (1,1)
               /  \\      /  \\
    shard     0    1    2    3      4

The tree depends on S alone. A worker that holds an aligned block of shards evaluates that block's
node by itself and publishes one partial sum; a worker with an unaligned range publishes one sum per
maximal block. Floating-point addition is not associative, so this order *is* the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar


class Addable(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


T = TypeVar("T", bound=Addable)


@dataclass(frozen=True, order=True)
class Node:
    """One node of the tree; a shard is a node of level 0."""

    level: int
    index: int

    def first_shard(self) -> int:
        return self.index << self.level


def promoted(node: Node, num_shards: int) -> Node:
    """Climb while the right sibling is missing (covers no shard below `num_shards`)."""
    while node.index % 2 == 0 and node.level < num_shards.bit_length():
        if (node.index + 1) << node.level < num_shards:
            break
        node = Node(node.level + 1, node.index >> 1)
    return node


@dataclass(frozen=True)
class Fold:
    """The place of the i-th value to arrive.

    It is stored in `slot` when `into` is empty. Otherwise it is added into slot `into[0]`, that slot
    into `into[1]`, and so on: the carries of a binary counter.
    """

    slot: int
    into: tuple[int, ...]


@dataclass(frozen=True)
class FoldPlan:
    """How values that arrive in shard order are folded: a stack of open nodes, one slot each."""

    folds: tuple[Fold, ...]
    left: tuple[Node, ...]  # the nodes that remain, in slots 0, 1, ...

    @property
    def num_slots(self) -> int:
        return 1 + max((fold.slot for fold in self.folds), default=-1)


@cache
def fold_plan(nodes: tuple[Node, ...], num_shards: int) -> FoldPlan:
    """Fold `nodes` (in shard order, not overlapping) as far as the tree over `num_shards` allows."""
    stack: list[Node] = []
    folds: list[Fold] = []
    for node in nodes:
        top = promoted(node, num_shards)
        slot, into = len(stack), []
        while stack and top.index % 2 == 1 and stack[-1] == Node(top.level, top.index - 1):
            stack.pop()
            into.append(len(stack))
            top = promoted(Node(top.level + 1, top.index >> 1), num_shards)
        stack.append(top)
        folds.append(Fold(slot, tuple(into)))
    return FoldPlan(tuple(folds), tuple(stack))


def local_plan(shards: range, num_shards: int) -> FoldPlan:
    """How one worker folds the gradients of its own `shards` of a step with `num_shards` shards."""
    return fold_plan(tuple(Node(0, shard) for shard in shards), num_shards)


def tree_sum(values: Sequence[T]) -> T:
    """The tree evaluated over numbers or tensors, one per shard; leaves the values alone."""
    return folded(values, local_plan(range(len(values)), len(values)))[0]


def folded(values: Sequence[T], plan: FoldPlan) -> list[T]:
    """The sums that remain of `values`, one per node of `plan.left`; leaves the values alone."""
    slots: dict[int, T] = {}
    for value, fold in zip(values, plan.folds, strict=True):
        carry = value
        for slot in fold.into:
            carry = slots[slot] = slots[slot] + carry
        if not fold.into:
            slots[fold.slot] = carry
    return [slots[slot] for slot in range(len(plan.left))]

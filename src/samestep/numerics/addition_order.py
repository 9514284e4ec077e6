"""The order in which an owner adds the sums that workers publish: the rest of the reduction tree's additions."""

from functools import cache

from samestep.numerics.reduction_tree import Node, fold_plan

Addition = tuple[int, int]  # positions of nodes: into, other


@cache
def addition_order(nodes: tuple[Node, ...], num_shards: int) -> list[Addition]:
    """The additions that join `nodes` (in shard order) into the root.

    After an addition, `into` holds the sum. For nodes (2,0) (0,4) (0,5) (1,3), the publication of 5,3 of
    eight shards: (1, 2), (1, 3), (0, 1).
    """
    open_nodes: list[int] = []  # positions that hold the tree's open sums, as the slots of the fold
    order: list[Addition] = []
    for position, fold in enumerate(fold_plan(nodes, num_shards).folds):
        carry = position
        for slot in fold.into:
            order.append((open_nodes[slot], carry))
            carry = open_nodes[slot]
        del open_nodes[fold.into[-1] + 1 if fold.into else fold.slot :]
        if not fold.into:
            open_nodes.append(position)
    assert len(open_nodes) == 1, f"{nodes} do not cover {num_shards} shards"
    return order

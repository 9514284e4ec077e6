"""When no plan can be: the smallest change with which there is one."""

from samestep.plan.cluster import Cluster
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.search.partition import partition
from samestep.planner.search.search import (
    Freedom,
    layers_of,
    reduction_of,
    row_of,
)
from samestep.planner.search.stages import NothingFits


def smallest_change(chain: Chain, costs: MeasuredCosts, cluster: Cluster, freedom: Freedom) -> str:
    """A sentence; empty where nothing is known."""
    fewest = min(freedom.workers)
    stages = freedom.may_cut and chain.why_uncut is None and len(chain.units) > 1
    if stages and fewest > 1:
        here = cluster.first(fewest)
        found = partition(layers_of(chain, costs, here), row_of(here, freedom), chain.shards, reduction_of(here))
        if isinstance(found, NothingFits):
            return str(found)
    if fewest > chain.shards:
        return f"the smallest change is --workers {chain.shards}: more workers than shards need stages or slices"
    return ""

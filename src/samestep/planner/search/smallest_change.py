"""When no plan can be: the smallest change with which there is one."""

from samestep.plan.cluster import Cluster
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.search.partition import partition
from samestep.planner.search.search import SearchSpace, layer_costs, replication_of, worker_row
from samestep.planner.search.stage_costs import NothingFits


def smallest_change(chain: Chain, costs: MeasuredCosts, cluster: Cluster, freedom: SearchSpace) -> str:
    """A sentence; empty where nothing is known."""
    fewest = min(freedom.workers)
    stages = freedom.may_cut and chain.why_uncut is None and len(chain.units) > 1
    if stages and fewest > 1:
        here = cluster.first(fewest)
        found = partition(
            layer_costs(chain, costs, here), worker_row(here, freedom), chain.shards, replication_of(here)
        )
        if isinstance(found, NothingFits):
            return str(found)
    if fewest > chain.shards:
        return f"the smallest change is --workers {chain.shards}: more workers than shards need stages or slices"
    return ""

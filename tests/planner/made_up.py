"""Jobs and machines that nobody has: chains, costs and clusters for tests of the planner, in round numbers."""

from collections.abc import Sequence
from random import Random
from typing import Any

from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Passing, Table
from samestep.planner.cost.profile import Conditions, Profile
from samestep.planner.search.decision import Decision, decide
from samestep.planner.search.search import SearchSpace

SHARDS, SLICES = 4, 4


def unit(
    name: str, kind: str = "Linear", *, weights: int = 4_000_000, makes: int = 40_000, first: bool = False
) -> Unit:
    crossing = 0 if first else makes
    return Unit(name, f"{kind} {weights}", weights, 2, crossing, crossing, makes, makes, float(weights))


def chain(**changes: Any) -> Chain:
    """A convolution, three fully connected layers, two of which are sliced together, and a norm between."""
    units = (
        unit("conv", "Conv2d", weights=40_000, makes=400_000, first=True),
        unit("norm", "LayerNorm", weights=400),
        unit("fc1", weights=8_000_000),
        unit("fc2", weights=8_000_001),
        unit("head", weights=400_000),
    )
    regions = (
        SliceableRegion(("conv",), (0,), SLICES, 40_000, 100_000, 400_000, False, False),
        SliceableRegion(("fc1", "fc2"), (2, 3), SLICES, 16_000_000, 40_000, 40_000, True, True),
        SliceableRegion(("head",), (4,), SLICES, 400_000, 40_000, 4_000, False, True),
    )
    fields: dict[str, Any] = {
        "units": units,
        "regions": regions,
        "why_whole": {"norm": "a LayerNorm is none of Linear"},
        "why_uncut": None,
        "shards": SHARDS,
        "batch_size": 64,
        "state": 1.0,
        "is_elementwise": True,
    }
    return Chain(**{**fields, **changes})


def table(
    workers: int,
    of: Chain,
    forwards: Sequence[float] = (4e-3, 1e-4, 2e-3, 2e-3, 5e-4),
    slowdown: float = 1.0,
    **changes: Any,
) -> Table:
    """A backward takes two forwards; slices on a worker what they are of the whole, and a tenth more."""
    units = tuple(Pair(f * slowdown, 2 * f * slowdown) for f in forwards[: len(of.units)])
    shares = [sum(units[i].forward for i in region.units) * of.shards / workers * 1.1 for region in of.regions]
    fields: dict[str, Any] = {
        "workers": workers,
        "whole": Pair(sum(u.forward for u in units) * 0.99, sum(u.backward for u in units) * 0.99),
        "units": units,
        "regions": tuple(Pair(seconds, 2 * seconds) for seconds in shares),
        "own": tuple(-(-region.slices // workers) for region in of.regions),
        "rests": tuple(Pair(1e-5, 2e-5) for _ in of.regions),
        "load": 2e-5,
        "add": 2e-10,
        "agree": 2e-5,
        "merge": 1e-6,
        "clip": 0.0,
        "publish": 2e-5,
        "reduce": 0.0 if workers == 1 else 3e-10,
        "update": 4e-10,
        "gap": 1e-4,
        "skew": 0.0 if workers == 1 else 0.02,
        "spread": 0.02,
    }
    return Table(**{**fields, **changes})


def costs(of: Chain, **changes: Any) -> MeasuredCosts:
    """Two workers at once are a tenth slower each."""
    both = table(2, of, slowdown=1.1, **changes)
    return MeasuredCosts(table(1, of, **changes), both, Passing(1e-5, 2e-10, 1e-5, 2e-10, 0.0, 0.0))


def cluster(hosts: int = 1, workers: int = 2, bandwidth: float = 125e6) -> Cluster:
    """So many hosts with so many workers each."""
    found = tuple(Host(f"host{n}", workers, workers, 16 * 10**9) for n in range(hosts))
    return Cluster(found, Link(1e-5, 2e9), Link(1e-4, bandwidth) if hosts > 1 else None)


def profile(of: Chain | None = None, found: MeasuredCosts | None = None) -> Profile:
    of = of or chain()
    ground = Conditions("a machine", "2.13.0", 1, of.shards, "float32", 2, "SGD/fused", "none", False, False, "tuple")
    return Profile(ground, of, found or costs(of), "made up")


def decision(of: Profile | None = None, on: Cluster | None = None, **freedom: Any) -> Decision:
    on = on or cluster()
    of = of or profile()
    fields: dict[str, Any] = {"workers": tuple(range(1, on.workers + 1)), **freedom}
    return decide(of, on, Numerics(shards=of.chain.shards), SearchSpace(**fields))


def any_profile(seed: int) -> Profile:
    """Layers of any weights, activations and seconds."""
    random = Random(seed)
    units = tuple(
        unit(u.name, u.signature, weights=size(random, 100, 3e7), makes=size(random, 100, 2e6), first=number == 0)
        for number, u in enumerate(chain().units)
    )
    of = chain(units=units)
    return profile(of, costs(of, forwards=tuple(logarithmic(random, 1e-5, 2e-2) for _ in units)))


def any_decision(seed: int) -> Decision:
    """Of all sorts, on one host and on several. A number, so that a test that fails can be told by it."""
    random = Random(seed)
    on = cluster(random.randint(1, 3), random.randint(1, 2), logarithmic(random, 1e6, 1e10))
    return decision(any_profile(seed), on, may_slice=random.random() < 0.5)


def size(random: Random, least: float, most: float) -> int:
    return round(logarithmic(random, least, most))


def logarithmic(random: Random, least: float, most: float) -> float:
    return float(least * (most / least) ** random.random())

"""Choices layer by layer: whole or sliced, and why. Slices keep their weights in place and move activations; whole
layers are the other way round (Krizhevsky 2014). So the bytes of both are shown, and the time of either choice.

Equal layers (repeated blocks) share one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from samestep.errors import PlanRefused
from samestep.plan.plan import Plan
from samestep.plan.prediction import in_ms
from samestep.planner.cost.chain import Chain
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import NARROW, Candidate, data_plans, like_regions, ranked, sliced_plan


@dataclass(frozen=True)
class LayerChoice:
    """The choice for equal layers. Bytes are those of all of them together."""

    names: tuple[str, ...]
    is_sliced: bool
    weights: int
    activations: int  # bytes of their inputs and outputs in a step
    flipped: float | None  # seconds of a step with these layers the other way
    why: str

    @property
    def name(self) -> str:
        """Names of the first layers, and the number of the others."""
        shown = ", ".join(self.names[:2])
        return shown if len(self.names) <= 2 else f"{shown} and {len(self.names) - 2} like them"

    def text(self) -> str:
        way = "sliced" if self.is_sliced else "whole"
        sizes = f"weights {sized(self.weights)}, activations {sized(self.activations)}"
        return f"{self.name}: {way} ({sizes}): {self.why}"


def sized(nbytes: float) -> str:
    return f"{nbytes / 1e6:.3g} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.3g} KB"


def layer_choices(decision: Decision) -> list[LayerChoice]:
    """The choices in the order of the chain."""
    chain = decision.profile.chain
    groups = like_regions(chain)
    found = [
        (chain.regions[group[0]].units[0], regions_choice(decision, number)) for number, group in enumerate(groups)
    ]
    inside = {unit for region in chain.regions for unit in region.units}
    found += [(units[0], units_choice(chain, units)) for units in like_units(chain, inside)]
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def like_units(chain: Chain, inside: set[int]) -> list[list[int]]:
    """Groups of units with the same signature, outside of all regions."""
    found: dict[str, list[int]] = {}
    for number, unit in enumerate(chain.units):
        if number not in inside:
            found.setdefault(unit.signature, []).append(number)
    return list(found.values())


def units_choice(chain: Chain, units: Sequence[int]) -> LayerChoice:
    names = tuple(chain.units[i].name or "the whole model" for i in units)
    weights = sum(chain.units[i].parameters for i in units)
    moved = sum(chain.units[i].crossing + chain.units[i].makes for i in units) * chain.shards
    return LayerChoice(names, False, weights, moved, None, unit_reason(chain, names[0]))


def unit_reason(chain: Chain, name: str) -> str:
    if chain.why_uncut is not None:
        return f"the network is not cut: {chain.why_uncut}"
    if name in chain.why_whole:
        return f"it cannot be sliced: {chain.why_whole[name]}"
    if not chain.is_elementwise:
        return "it cannot be sliced: the optimizer's update needs the whole weight"
    return "it was not measured in slices"


def regions_choice(decision: Decision, group: int) -> LayerChoice:
    chain = decision.profile.chain
    regions = [chain.regions[i] for i in like_regions(chain)[group]]
    other = flipped(decision, group)
    is_sliced = group in sliced_groups(decision)
    return LayerChoice(
        tuple(layer for region in regions for layer in region.layers),
        is_sliced,
        sum(region.parameters for region in regions),
        sum(region.takes + region.makes for region in regions) * chain.shards,
        None if other is None else other.seconds,
        region_reason(decision, is_sliced, other),
    )


def region_reason(decision: Decision, is_sliced: bool, other: Candidate | None) -> str:
    if other is None:
        stages = len(decision.pick.plan.stages)
        return f"the pick cuts the network into {stages} stages instead" if stages > 1 else "one worker has all of it"
    more = other.seconds - decision.pick.seconds
    where = f" on {other.plan.workers} workers" if other.plan.workers != decision.pick.plan.workers else ""
    way = "whole" if is_sliced else "sliced"
    said = f"{way}{where}, a step would take {in_ms(abs(more))} ms {'more' if more >= 0 else 'less'}"
    allowed = decision.freedom.may_slice or is_sliced
    return said if allowed else f"{said}, and slices are not in these numerics (--slices)"


def sliced_groups(decision: Decision) -> frozenset[int]:
    named = {layer for stage in decision.pick.plan.stages for layer, _ in stage.slices}
    chain = decision.profile.chain
    return frozenset(n for n, group in enumerate(like_regions(chain)) if chain.regions[group[0]].layers[0] in named)


def flipped(decision: Decision, group: int) -> Candidate | None:
    """The pick with one group of regions the other way; on all workers where the pick is on one worker."""
    pick = decision.pick.plan
    workers = pick.workers if pick.workers > 1 else max(decision.freedom.workers)
    if len(pick.stages) > 1 or not 1 < workers <= NARROW:
        return None
    others = sliced_groups(decision) ^ {group}
    found = [candidate_or_none(decision, plan) for plan in plans_with(decision, others, workers)]
    return next(iter(ranked([one for one in found if one is not None])), None) if any(found) else None


def plans_with(decision: Decision, groups: frozenset[int], workers: int) -> list[Plan]:
    """Plans with these groups of regions in slices; data parallel ones where there are no groups."""
    here = decision.problem.on_first(workers)
    if groups:
        return [sliced_plan(here, like_regions(here.chain), groups)]
    return list(data_plans(here)) if workers <= here.chain.shards else []


def candidate_or_none(decision: Decision, plan: Plan) -> Candidate | None:
    try:
        return decision.problem.candidate(plan)
    except PlanRefused:
        return None

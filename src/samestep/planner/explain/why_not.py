"""Why not this plan? A plan, named or written out, is estimated and compared with the pick part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from samestep.errors import PlanRefused, Refused
from samestep.numerics.numerics import parse_line
from samestep.plan.plan import OPTIONS, Plan, Stage, equal_shares, parse_fields, parse_stages, slices_text
from samestep.planner.cost.chain import SliceableRegion
from samestep.planner.cost.profile import profile_key
from samestep.planner.explain.plan_comparison import Comparison, compare_to_pick
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import is_convolution, like_regions, pipelines, ranked

MUST_AGREE = ("shards", "threads", "precision", "sync_batchnorm", "join", "codec", "sync")  # else times differ


@dataclass(frozen=True)
class Answer:
    """Answer to `--why-not`. `comparison` is None for the pick and for a plan that cannot be run, as `text` says."""

    plan: str
    comparison: Comparison | None
    text: str


def why_not(decision: Decision, name: str, text: str | None = None) -> Answer:
    """name: data, slices, hybrid, pipeline, as `--plan` takes them; or a file's, with its text."""
    try:
        plan = plan_named(decision, name) if text is None else plan_from_text(decision, text, name)
        found = decision.problem.candidate(plan)
    except Refused as refused:
        return Answer(name, None, f"{name} cannot be run here: {refused}")
    if same_but_numerics(plan, decision.pick.plan):
        return Answer(name, None, f"{name} is the pick: {decision.pick.name}")
    held = compare_to_pick(decision, found)
    other = any(stage.slices for stage in plan.stages) and not decision.freedom.may_slice
    remark = "; its slices are not in these numerics (--slices)" if other else ""
    return Answer(name, held, f"{name}, as {held.text()}{remark}")


def same_but_numerics(a: Plan, b: Plan) -> bool:
    """Whether two plans are equal but for their numerics."""
    return replace(a, numerics=b.numerics) == b


# Plans by name, as `samestep train --plan NAME` would run them.


def plan_named(decision: Decision, name: str) -> Plan:
    """The plan of this name. Raises PlanRefused when the model does not allow it."""
    chain, workers = decision.profile.chain, max(decision.freedom.workers)
    if name == "auto":
        return decision.pick.plan
    if name == "data":
        return Plan(decision.numerics, equal_shares(chain.shards, min(workers, chain.shards)))
    if name == "pipeline":
        return best_pipeline(decision, workers)
    return all_sliced(decision, workers, with_convolutions=name == "slices")


def best_pipeline(decision: Decision, workers: int) -> Plan:
    """The best pipeline by measured costs; the named plan cuts by counting multiplications."""
    chain = decision.profile.chain
    if workers == 1 or len(chain.units) < 2 or chain.why_uncut is not None or not decision.freedom.may_cut:
        why = "there is one worker" if workers == 1 else chain.why_uncut
        why = why or ("it has one layer with weights" if len(chain.units) < 2 else "BatchNorm is over the whole batch")
        raise PlanRefused(f"the network cannot be cut into stages: {why}; use --plan data")
    found = []
    for plan in pipelines(decision.problem.on_first(workers), decision.freedom):
        try:
            found.append(decision.problem.candidate(plan))
        except PlanRefused:
            continue  # an order that this number of shards does not allow
    if not found:
        raise PlanRefused(f"no stages were found for {workers} workers: give each more memory, or use fewer")
    return ranked(found)[0].plan


def all_sliced(decision: Decision, workers: int, *, with_convolutions: bool) -> Plan:
    chain = decision.profile.chain
    groups = [g for g in like_regions(chain) if with_convolutions or not is_convolution(chain, g)]
    regions = [chain.regions[i] for i in sorted(i for group in groups for i in group)]
    if not regions:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in list(chain.why_whole.items())[:5])
        why = reasons if chain.is_elementwise else "the optimizer's update needs whole weights"
        raise PlanRefused(
            f"no layer of this model can be sliced ({why or 'it has convolutions only'}): use --plan data"
        )
    slices = tuple((layer, equal_shares(region.slices, workers)) for region in regions for layer in region.layers)
    return staged(decision, [Stage("", tuple(range(workers)), equal_shares(chain.shards, workers), slices)])


def staged(decision: Decision, stages: Sequence[Stage], transport: str = "processes", **options: Any) -> Plan:
    return Plan.staged(replace(decision.numerics, slices=slices_text(stages)), stages, transport, **options)


# Plans from a file.


def plan_from_text(decision: Decision, text: str, source: str) -> Plan:
    """Read a plan's text. Raises PlanRefused, with both sides, for other numerics, another model or another cluster."""
    fields = parse_fields(text, source)
    refuse_other_numerics(decision, parse_line(fields["numerics"], source))
    if "stage" in fields:
        stages = [resolve_patterns(decision, stage) for stage in parse_stages(fields["stage"])]
        plan = staged(decision, stages, **{name: fields[name] for name in OPTIONS if name in fields})
    else:
        plan = Plan(decision.numerics, tuple(fields["assign"]))
    if plan.workers > decision.cluster.workers:
        raise PlanRefused(
            f"it is for a cluster with {plan.workers} workers, and this one ({decision.cluster.fingerprint()}) has "
            f"{decision.cluster.workers}: plan for that one, or reassign its work"
        )
    return plan


def refuse_other_numerics(decision: Decision, said: dict[str, object]) -> None:
    ours = asdict(decision.numerics) | {"torch": decision.profile.conditions.torch}
    for name in (*MUST_AGREE, "torch"):
        if said.get(name, ours[name]) not in (ours[name], "unknown"):
            raise PlanRefused(
                f"it was made for {name}={said[name]}, and this job was measured with {name}={ours[name]}: its numbers "
                f"and its times are others; give the job the same {name} to compare them"
            )


def resolve_patterns(decision: Decision, stage: Stage) -> Stage:
    """The stage with patterns replaced by the layers that they match."""
    slices = {layer: counts for pattern, counts in stage.slices for layer in layers_matching(decision, pattern, counts)}
    return replace(stage, slices=tuple(slices.items()))


def layers_matching(decision: Decision, pattern: str, counts: Sequence[int]) -> Iterator[str]:
    chain = decision.profile.chain
    found = [(r, layer) for r in chain.regions for layer in r.layers if layer == pattern or fnmatchcase(layer, pattern)]
    if not found:
        raise PlanRefused(no_such_layer(decision, pattern))
    for region, layer in found:
        yield check_slices(region, layer, sum(counts))


def check_slices(region: SliceableRegion, layer: str, slices: int) -> str:
    if slices != region.slices:
        raise PlanRefused(
            f"it cuts {layer} into {slices} slices, and {region.slices} were measured: plan with --slices {slices}"
        )
    return layer


def no_such_layer(decision: Decision, pattern: str) -> str:
    chain, conditions = decision.profile.chain, decision.profile.conditions
    why = chain.why_whole.get(pattern)
    if why is not None:
        return f"{pattern} cannot be sliced: {why}; leave it whole"
    names = [unit.name for unit in chain.units]
    shown = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    return (
        f"it slices {pattern}, and this model ({profile_key(conditions, chain)[:12]}) has no such layer that can be "
        f"sliced; its layers are {shown}: the plan is for another model"
    )

"""What an explanation says are the estimates' own numbers, and each sentence is held against its plan."""

import json
from dataclasses import replace

import pytest

from planner.made_up import any_decision, chain, cluster, costs, decision, profile
from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, Stage
from samestep.plan.prediction import PARTS, in_ms
from samestep.planner.cost.estimate import estimate
from samestep.planner.explain.explanation import explain
from samestep.planner.explain.layer_choices import LayerChoice, layer_choices
from samestep.planner.explain.plan_comparison import compare_to_pick, runners_up
from samestep.planner.search.decision import Decision
from samestep.planner.search.search import PlanningProblem, search

SLOW = cluster(hosts=2, workers=1)  # 1 Gbit/s


def seconds_of(plan: Plan, of: Decision) -> float:
    return estimate(plan, of.profile.chain, of.profile.costs, of.cluster).seconds


@pytest.mark.parametrize("seed", range(15))
def test_parts_add_up_to_the_step_and_differences_to_the_difference(seed: int) -> None:
    of = any_decision(seed)
    for one in of.ranking:
        held = compare_to_pick(of, one)
        assert set(held.parts) == set(PARTS)
        assert min(held.parts.values()) >= 0
        assert sum(held.parts.values()) == pytest.approx(held.seconds) == pytest.approx(seconds_of(one.plan, of))
        assert sum(held.apart.values()) == pytest.approx(held.more, abs=1e-12)
        assert held.low < held.seconds < held.high


@pytest.mark.parametrize("seed", range(15))
def test_runners_up_are_the_best_of_every_other_kind(seed: int) -> None:
    of = any_decision(seed)
    found = runners_up(of)
    assert len(found) <= 5
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    assert of.pick.name not in [one.name for one in found]
    best = {kind: min(o.seconds for o in of.ranking if o.kind == kind) for kind in {o.kind for o in of.ranking}}
    for kind in set(best) - {of.pick.kind}:
        assert best[kind] == min(one.seconds for one in found if one.kind == kind)


def test_where_a_plan_loses_comes_in_milliseconds_the_largest_part_first() -> None:
    of = decision(on=SLOW, may_slice=True)
    data = next(one for one in runners_up(of) if one.kind == "data")
    apart = {part: data.parts[part] - of.prediction.parts[part] for part in PARTS}
    assert [part for part, _ in data.loses] == ["communication", "update"]  # all gradients go over the wire
    assert [part for part, _ in data.wins] == ["resharding"]
    assert f"loses communication {in_ms(apart['communication'])} ms, update {in_ms(apart['update'])} ms" in data.text()
    assert f"wins resharding {in_ms(-apart['resharding'])} ms" in data.text()
    assert f"{in_ms(data.seconds - of.pick.seconds)} ms (" in data.text()


def test_the_text_has_all_sections_and_the_prediction() -> None:
    of = decision(on=SLOW)
    text = explain(of).text()
    assert text.startswith(f"{of.pick.name}: {of.prediction.text()}\n  {of.prediction.split_text()}")
    for title in ("runners-up", "layers", "what would flip the choice", "other numerics"):
        assert f"\n\n{title}:\n  " in text


# Layer by layer.


def line_of(found: list[LayerChoice], layer: str) -> LayerChoice:
    return next(line for line in found if layer in line.names)


def test_a_sliced_layers_line_tells_bytes_and_what_whole_would_cost() -> None:
    of = decision(on=SLOW, may_slice=True)
    line = line_of(layer_choices(of), "fc1")
    assert line.names == ("fc1", "fc2")
    assert line.is_sliced
    assert (line.weights, line.activations) == (16_000_000, 80_000 * 4)
    data = min(seconds_of(plan, of) for plan in (Plan(of.numerics, (2, 2)),))
    assert line.flipped == pytest.approx(data)  # nothing else is sliced
    assert f"weights 16 MB, activations 320 KB): whole, a step would take {in_ms(data - of.pick.seconds)} ms more" in (
        line.text()
    )


def test_a_whole_layers_line_tells_what_slices_would_cost() -> None:
    of = decision(on=SLOW, may_slice=True)
    line = line_of(layer_choices(of), "conv")
    assert not line.is_sliced
    shares = {"conv": (2, 2), "fc1": (2, 2), "fc2": (2, 2)}
    stage = Stage("", (0, 1), (2, 2), tuple(shares.items()))
    both = seconds_of(Plan.staged(of.numerics, [stage]), of)
    assert line.flipped == pytest.approx(both)
    assert f"sliced, a step would take {in_ms(both - of.pick.seconds)} ms more" in line.why


def test_a_layer_that_cannot_be_sliced_has_the_reason() -> None:
    assert line_of(layer_choices(decision()), "norm").why == "it cannot be sliced: a LayerNorm is none of Linear"
    stubborn = chain(regions=(), is_elementwise=False)
    assert (
        "the optimizer's update needs the whole weight"
        in line_of(layer_choices(decision(profile(stubborn))), "fc1").why
    )
    uncut = chain(units=chain().units[:1], regions=(), why_uncut="forward goes another way for every row")
    assert line_of(layer_choices(decision(profile(uncut))), "conv").why.endswith("another way for every row")


def test_every_layer_has_one_line_and_repeated_blocks_share_it() -> None:
    block = chain().units[4]
    blocks = tuple(replace(block, name=f"head{n}") for n in range(6))
    many = chain(units=(*chain().units[:4], *blocks), regions=chain().regions[:2])
    found = layer_choices(decision(profile(many, costs(many, forwards=(4e-3, 1e-4, 2e-3, 2e-3, *[5e-4] * 6)))))
    assert sorted(name for line in found for name in line.names) == sorted(unit.name for unit in many.units)
    line = line_of(found, "head0")
    assert line.names == tuple(unit.name for unit in blocks)
    assert line.name == "head0, head1 and 4 like them"


def test_where_the_pick_has_stages_or_one_worker_the_lines_say_so() -> None:
    of = decision(on=SLOW)
    count = len(of.pick.plan.stages)
    assert count > 1
    assert line_of(layer_choices(of), "fc1").why == f"the pick cuts the network into {count} stages instead"
    alone = layer_choices(decision(on=cluster(workers=1)))
    assert line_of(alone, "fc1").why == "one worker has all of it"


# Other numerics.


def test_what_slices_would_gain_is_what_the_search_with_slices_finds() -> None:
    of = decision(on=SLOW)
    freedom = replace(of.freedom, may_slice=True)
    best = search(PlanningProblem(of.profile.chain, of.profile.costs, of.cluster, of.numerics), freedom)[0]
    (said, _) = explain(of).numerics
    gain = of.pick.seconds - best.seconds
    assert gain > 0
    assert said == (
        f"with --slices 4 (other numbers), {best.name} would take {in_ms(best.seconds)} ms, {in_ms(gain)} ms less"
    )


def test_where_slices_are_allowed_or_unknown_nothing_is_said_of_them() -> None:
    for of in (decision(may_slice=True), decision(profile(chain(regions=()))), decision(on=cluster(workers=1))):
        (said,) = explain(of).numerics
        assert "--tune-numerics" in said


# The decision as text.


@pytest.mark.parametrize("seed", range(5))
def test_a_decision_that_travelled_as_json_is_the_same(seed: int) -> None:
    of = any_decision(seed)
    back = Decision.from_json(json.loads(json.dumps(of.as_json())))
    assert [(one.plan, one.seconds) for one in back.ranking] == [(one.plan, one.seconds) for one in of.ranking]
    assert explain(back).text() == explain(of).text()
    assert back.numerics == of.numerics == Numerics(shards=4)


def test_when_no_plan_can_be_the_refusal_has_the_smallest_change() -> None:
    with pytest.raises(PlanRefused, match=r"no plan for 4 shards .*the smallest change is --workers 4"):
        decision(on=cluster(workers=6), workers=(6,), may_cut=False)
    with pytest.raises(PlanRefused, match=r"no partition fits: .* needs [\d.]+ times the workers' memory"):
        decision(on=cluster(workers=6), workers=(6,), memory=1e6)


def test_of_two_that_were_run_the_faster_is_picked() -> None:
    of = decision()
    first, second, *others = of.ranking
    after = of.after({first.name: 1.0, second.name: 0.9})
    assert after.ranking == (second, first, *others)
    assert Decision.from_json(json.loads(json.dumps(after.as_json()))).pick.name == second.name
    assert explain(after).sections()["short runs"] == [
        f"{second.name}: 900 ms, predicted {in_ms(second.seconds)} ms",
        f"{first.name}: 1000 ms, predicted {in_ms(first.seconds)} ms",
    ]
    assert of.after({first.name: 1.0, second.name: 0.99}).pick == first, "a tie stays as predicted"
    assert "short runs" not in explain(of).text()

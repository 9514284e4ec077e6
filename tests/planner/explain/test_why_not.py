"""One plan against the pick: by name, from a file; and why one cannot be run."""

from dataclasses import replace

import pytest

from planner.made_up import chain, cluster, decision, profile
from samestep.plan.plan import Plan, Stage, equal_shares
from samestep.planner.cost.estimate import estimate
from samestep.planner.explain.why_not import why_not
from samestep.planner.search.decision import Decision

SLOW = cluster(hosts=2, workers=1)


def seconds_of(plan: Plan, of: Decision) -> float:
    return estimate(plan, of.profile.chain, of.profile.costs, of.cluster).seconds


def sliced(of: Decision, *layers: str) -> Plan:
    workers = of.cluster.workers
    slices = tuple((layer, equal_shares(4, workers)) for layer in layers)
    return Plan.staged(of.numerics, [Stage("", tuple(range(workers)), equal_shares(4, workers), slices)])


@pytest.mark.parametrize("name", ["data", "slices", "hybrid"])
def test_a_plan_by_name_is_the_presets(name: str) -> None:
    of = decision(on=SLOW)
    layers = {"slices": ("conv", "fc1", "fc2", "head"), "hybrid": ("fc1", "fc2", "head")}.get(name)
    plan = Plan(of.numerics, (2, 2)) if layers is None else sliced(of, *layers)
    answer = why_not(of, name)
    assert answer.comparison is not None
    assert answer.comparison.seconds == pytest.approx(seconds_of(plan, of))
    assert answer.text == f"{name}, as {answer.comparison.text()}" + (
        "" if layers is None else "; its slices are not in these numerics (--slices)"
    )


def test_the_pipeline_is_the_best_one() -> None:
    of = decision(may_slice=True)
    answer = why_not(of, "pipeline")
    assert answer.comparison is not None
    best = min(one.seconds for one in of.ranking if one.kind == "pipeline" and one.plan.workers == 2)
    assert answer.comparison.seconds == pytest.approx(best)


def test_the_pick_itself_is_said_to_be_it() -> None:
    of = decision()
    assert of.pick.kind == "data"
    for answer in (why_not(of, "data"), why_not(of, "auto"), why_not(of, "mine.toml", str(of.pick.plan))):
        assert answer.comparison is None
        assert answer.text.endswith("is the pick: data 2,2")


def test_a_plan_in_a_file_is_held_against_the_pick() -> None:
    of = decision()
    answer = why_not(of, "mine.toml", 'numerics = "shards=4"\nassign = [3, 1]')
    assert answer.comparison is not None
    assert answer.comparison.seconds == pytest.approx(seconds_of(Plan(of.numerics, (3, 1)), of))
    assert answer.text.startswith("mine.toml, as data 3,1: ")


def test_patterns_stand_for_the_layers_that_they_match() -> None:
    of = decision(may_slice=True)
    text = 'numerics = "shards=4"\n[[stage]]\nworkers = [0, 1]\nassign = [2, 2]\n[stage.slices]\n"*c*" = [2, 2]'
    answer = why_not(of, "mine.toml", text)
    assert answer.comparison is not None
    assert answer.comparison.seconds == pytest.approx(seconds_of(sliced(of, "conv", "fc1", "fc2"), of))
    assert "--slices" not in answer.text


def staged(first: str = "", slices: str = "", workers: str = "0, 1") -> str:
    table = f"[stage.slices]\n{slices}\n" if slices else ""
    second = f'[[stage]]\nfirst = "{first}"\nworkers = [1]\nassign = [4]\n' if first else ""
    return f'numerics = "shards=4"\n[[stage]]\nworkers = [{workers}]\nassign = [2, 2]\n{table}{second}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('numerics = "shards=8"\nassign = [4, 4]', ["shards=8", "shards=4"]),
        ('numerics = "shards=4 torch=2.12.0"\nassign = [2, 2]', ["torch=2.12.0", "torch=2.13.0"]),
        ('numerics = "shards=4"\nassign = [1, 1, 2]', ["3 workers", decision().cluster.fingerprint(), "has 2"]),
        (staged(first="decoder"), ["begins at decoder", "it can before norm, fc1"]),
        (staged(slices='"decoder.fc" = [2, 2]'), ["slices decoder.fc", "layers are conv, norm", "another model"]),
        (staged(slices='"norm" = [2, 2]'), ["norm cannot be sliced: a LayerNorm is none of Linear"]),
        (staged(slices='"head" = [1, 1]'), ["cuts head into 2 slices, and 4 were measured", "--slices 2"]),
        (staged(slices='"fc1" = [2, 2]'), ["slices fc1", "not measured by itself"]),
        ('numerics = "shards=4"\nassign = [1, 1]', ["gives out 2 shards, the batch has 4"]),
    ],
)
def test_a_plan_that_cannot_be_run_says_why_and_names_both_sides(text: str, words: list[str]) -> None:
    answer = why_not(decision(may_slice=True), "mine.toml", text)
    assert answer.comparison is None
    assert answer.text.startswith("mine.toml cannot be run here: ")
    assert not [word for word in words if word not in answer.text]


def test_a_named_plan_that_the_model_does_not_allow_says_why() -> None:
    whole = decision(profile(chain(regions=(), is_elementwise=False)))
    assert "the optimizer's update needs whole weights" in why_not(whole, "slices").text
    convolutions = decision(profile(chain(regions=chain().regions[:1], why_whole={})))
    assert "it has convolutions only" in why_not(convolutions, "hybrid").text
    uncut = decision(profile(chain(why_uncut="forward uses NumPy")))
    assert "cannot be cut into stages: forward uses NumPy" in why_not(uncut, "pipeline").text
    one = decision(on=cluster(workers=1))
    assert "there is one worker" in why_not(one, "pipeline").text
    synchronised = replace(one.freedom, workers=(1, 2), may_cut=False)
    assert "BatchNorm is over the whole batch" in why_not(replace(decision(), freedom=synchronised), "pipeline").text

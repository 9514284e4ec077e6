"""Stages as even as a chain allows; layers sliced where they can be, and the reason where not."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from samestep.errors import PlanRefused
from samestep.job.job import Job
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, Stage, slices_text
from samestep.setup.named_plans import balanced, chain_of, pipeline_stages, resolved, sliceable, sliced_stage
from samestep.setup.parallelize import divide, prepare


@given(work=st.lists(st.integers(0, 20), min_size=1, max_size=9), data=st.data())
def test_the_largest_stage_is_as_small_as_can_be(work: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(work)))
    bounds = balanced([float(w) for w in work], stages)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(work), stages + 1)
    assert all(a < b for a, b in pairwise(bounds))
    found = max(sum(work[a:b]) for a, b in pairwise(bounds))
    ways = ([0, *inner, len(work)] for inner in combinations(range(1, len(work)), stages - 1))
    assert found == min(max(sum(work[a:b]) for a, b in pairwise(way)) for way in ways)


def test_containers_are_opened_and_blocks_stay_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 4)
            blocks = [nn.TransformerEncoderLayer(4, 2, 4) for _ in range(3)]
            self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), *blocks)
            self.register_buffer("unused", torch.zeros(3))

    assert chain_of(Net()) == ["stem", "body.0.0", "body.1", "body.2", "body.3"]


class Mixed(nn.Module):
    """One layer of every kind, and every reason to stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.wide, self.frozen = nn.Linear(6, 40), nn.Linear(40, 40)
        self.twice, self.direct = nn.Linear(40, 40), nn.Linear(40, 40)
        self.head, self.tied = nn.Linear(40, 3), nn.Linear(40, 3)
        self.dead = nn.Linear(40, 40)
        self.tied.weight = self.head.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        x = self.twice(self.twice(self.frozen(self.wide(x))))
        x = nn.functional.linear(x, self.direct.weight) + self.direct(x)
        return self.head(x) + self.tied(x) + self.dead(x).detach().mean()


def job_of(model: type[nn.Module], *shape: int) -> Job:
    return Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, lr=0.1),
        data=(torch.randn(32, *shape), torch.arange(32) % 3),
        batch_size=32,
    )


def built(model: type[nn.Module], *shape: int) -> tuple[Job, nn.Module]:
    job = job_of(model, *shape)
    return job, prepare(job, job.build_model()).model


def test_every_layer_can_be_sliced_or_says_why_not() -> None:
    found = sliceable(*built(Mixed, 1, 4, 4), 4)
    assert {layer for layer, reason in found.items() if reason is None} == {"conv", "wide"}
    tied = "its weight is tied to another layer's"
    assert {layer: reason for layer, reason in found.items() if reason is not None} == {
        "norm": "a BatchNorm2d is none of Linear, Conv1d, Conv2d, Embedding, EmbeddingBag, MultiheadAttention",
        "grouped": "it has 2 groups",
        "frozen": "it is frozen",
        "twice": "forward calls it 2 times",
        "direct": "forward uses its weights directly",
        "head": tied,
        "tied": tied,
        "dead": "nothing that forward returns depends on what it makes",
    }


def test_slices_takes_all_and_hybrid_leaves_convolutions_whole() -> None:
    job, model = built(Mixed, 1, 4, 4)
    assert sliced_stage("slices", job, model, 4, None).slices == (("conv", (4,)), ("wide", (4,)))
    assert sliced_stage("hybrid", job, model, 4, None).slices == (("wide", (4,)),)
    assert sliced_stage("slices", job, model, 4, 10).slices == (("conv", (6,)), ("wide", (10,)))


def test_looking_for_layers_leaves_the_model_alone() -> None:
    job, model = built(Mixed, 1, 4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sliceable(job, model, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_preset_that_finds_nothing_is_refused_with_the_reasons() -> None:
    with pytest.raises(
        PlanRefused, match=r"--plan hybrid finds no layer to slice .*\(0: a convolution\): use --plan data"
    ):
        sliced_stage("hybrid", *built(Convolutions, 1, 4, 4), 4, None)


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8])
def test_further_workers_of_a_pipeline_replicate_its_heaviest_stage(workers: int) -> None:
    stages = pipeline_stages(*built(Chain, 4), 8, workers)
    assert [rank for stage in stages for rank in stage.workers] == list(range(workers))
    assert all(sum(stage.assign) == 8 and max(stage.assign) - min(stage.assign) <= 1 for stage in stages)
    firsts = {1: [""], 2: ["", "2"]}.get(workers, ["", "2", "4"])
    assert [stage.first for stage in stages] == firsts
    assert [len(stage.workers) for stage in stages] == [1, workers - 2, 1] if workers > 2 else [1] * workers


def resolve(*stages: Stage) -> tuple[Stage, ...]:
    job, model = built(Mixed, 1, 4, 4)
    return resolved(stages, job, model, 4, "my.plan")


def stage(slices: dict[str, tuple[int, ...]], **fields: Any) -> Stage:
    given = {"first": "", "workers": (0, 1), "assign": (2, 2), **fields}
    return Stage(**given, slices=tuple(slices.items()))


def test_patterns_stand_for_the_layers_that_can_be_sliced() -> None:
    """In the model's order; a later pattern wins."""
    (found,) = resolve(stage({"*": (1, 1)}))
    assert found.slices == (("conv", (1, 1)), ("wide", (1, 1)))
    (found,) = resolve(stage({"w*": (3, 1), "conv": (0, 2)}))
    assert found.slices == (("conv", (0, 2)), ("wide", (3, 1)))
    (found,) = resolve(stage({"*": (1, 1), "wide": (8, 8)}))
    assert found.slices == (("conv", (1, 1)), ("wide", (8, 8)))
    assert slices_text([found]) == "conv:2,wide:16"
    assert slices_text([stage({})]) == "none"


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        ({"tail.*": (1, 1)}, r"my.plan: the pattern 'tail.\*' of stage 0 matches no layer with weights; .*conv, norm"),
        ({"head": (1, 1)}, "my.plan: head cannot be sliced: its weight is tied to another layer's; leave it whole"),
        ({"twi*": (1, 1)}, "my.plan: twice cannot be sliced: forward calls it 2 times"),
        ({"conv": (4, 3)}, r"my.plan: 7 slices \(4,3\) of conv, which has 6 outputs: use at most 6"),
        ({"*": (4, 3)}, "7 slices .* of conv"),
    ],
)
def test_slices_that_do_not_fit_are_refused(slices: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        resolve(stage(slices))


def test_a_stage_begins_at_a_layer_of_the_model() -> None:
    with pytest.raises(PlanRefused, match=r"my.plan: stage 1 begins at 'tail', and the model has no such layer"):
        resolve(stage({}), stage({}, first="tail"))


class Backwards(nn.Module):
    """Registered in another order than called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.middle, self.first = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scale = torch.ones(8).to(x.dtype)
        return self.head(self.middle(x * scale))


def test_the_stages_of_a_pipeline_are_in_the_order_of_calling() -> None:
    stages = pipeline_stages(*built(Backwards, 4), 8, 3)
    assert [stage.first for stage in stages] == ["", "middle", "head"]


def test_a_forward_is_recorded_in_the_jobs_precision() -> None:
    job, model = built(Backwards, 4)
    job = replace(job, precision="bfloat16")
    plan = Plan.staged(Numerics(precision="bfloat16"), pipeline_stages(job, model, 4, 2))
    divided = divide(job, plan, prepare(job, model))
    assert divided.recipe is not None
    divided.recipe.of((torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)))  # a short batch's, whoever meets it first
    calls = [call for known in divided.recipe.known.values() for segment in known.segments for call in segment.calls]
    conversions = [call.arguments[0][1] for call in calls if str(call) == "to"]
    assert conversions == [torch.bfloat16, torch.bfloat16]


def test_a_pattern_stands_for_the_layers_of_its_own_stage() -> None:
    job, model = built(Chain, 4)
    first, second = stage({"*": (1, 1)}), stage({"*": (1, 2)}, first="2")
    found = resolved([first, second], job, model, 4, "my.plan")
    assert [stage.slices for stage in found] == [(("0", (1, 1)),), (("2", (1, 2)), ("4", (1, 2)))]


@pytest.mark.parametrize("pattern", ["4", "[24]"])
def test_a_layer_of_another_stage_is_refused(pattern: str) -> None:
    job, model = built(Chain, 4)
    with pytest.raises(PlanRefused, match=r"stage 0 slices .*, and forward calls [24] in stage 1: name it there"):
        resolved([stage({pattern: (1, 1)}), stage({}, first="2")], job, model, 4, "my.plan")


def test_a_layer_that_is_never_called_says_so() -> None:
    class Idle(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("idle", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self[4](self[2](self[0](x)))

    assert sliceable(*built(Idle, 4), 4)["idle"] == "forward does not call it by itself"

"""Records by form of batch and way through forward: as many as needed, bounded, and never a stale one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.job.objective import Objective
from samestep.parallel.execution import cut_recipe
from samestep.parallel.execution.cut_recipe import CutRecipe


@dataclasses.dataclass
class Batch:
    x: Tensor
    name: str = ""
    scale: float = 1.0


def recipe_of(around: Callable[[Any, Batch], Tensor]) -> CutRecipe:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    return CutRecipe(model, Objective(None, lambda m, b: around(m, b).sum()), ["1"], {}, {})


def ones(rows: int = 3, **fields: Any) -> Batch:
    return Batch(torch.ones(rows, 4), **fields)


def test_equal_shapes_are_one_record_and_others_have_their_own() -> None:
    recipe = recipe_of(lambda m, b: m(b.x))
    cuts = [recipe.of(Batch(torch.randn(rows, 4))) for rows in (3, 3, 5, 3, 5)]
    assert len({id(cut) for cut in cuts}) == 2
    assert len(recipe.known) == 2


def test_plain_values_that_forward_does_not_read_need_no_record_of_their_own() -> None:
    recipe = recipe_of(lambda m, b: m(b.x))
    assert len({id(recipe.of(ones(name=f"row {i}"))) for i in range(50)}) == 1


def test_plain_values_that_forward_reads_have_each_its_record_until_there_are_too_many() -> None:
    recipe = recipe_of(lambda m, b: m(b.x * b.scale))
    cuts = [recipe.of(ones(scale=float(i))) for i in range(cut_recipe.MOST_PLAIN)]
    assert len({id(cut) for cut in cuts}) == len(cuts)
    with pytest.raises(JobRefused, match=r"something else for every value of batch.scale, 1000.0 now and 0.0 before"):
        recipe.of(ones(scale=1000.0))
    assert recipe.of(ones(scale=2.0)) is cuts[2]


def masked(m: Any, b: Batch) -> Tensor:
    y = m[0](b.x if (b.x > 0).all() else b.x * (b.x > 0))
    return m[2](F.relu(m[1](y)))


def test_every_answer_has_a_record() -> None:
    recipe = recipe_of(masked)
    padded = Batch(torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 3))
    assert recipe.of(ones()).answers == ("true",)
    assert recipe.of(padded) is recipe.of(ones()), "the same signature: the guard will tell"
    other = recipe.of(padded, ("false",))
    assert other.answers == ("false",)
    assert recipe.of(ones(), ("false",)) is other
    assert len({id(cut) for cut in recipe.known.values()}) == 2
    assert [len(cut.segments[0].calls) for cut in (recipe.of(ones(), ("true",)), other)] == [4, 6]


def test_an_answer_is_taken_at_its_word_whatever_the_values_say() -> None:
    recipe = recipe_of(masked)
    assert recipe.of(ones(), ("false",)).answers == ("false",)


def test_a_number_that_is_another_one_in_every_batch_is_refused_with_its_place() -> None:
    recipe = recipe_of(lambda m, b: m(b.x / b.x.max().item()))
    for i in range(cut_recipe.MOST_PLAIN):
        recipe.of(ones(), (f"{i}.0",))
    with pytest.raises(JobRefused, match=r"value at test_cut_recipe.py:\d+ and finds another one every time, 99.0 now"):
        recipe.of(ones(), ("99.0",))


def test_the_oldest_record_but_the_first_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_recipe, "MOST_RECORDS", 6)
    recipe = recipe_of(lambda m, b: m(b.x))
    first = recipe.of(ones(1))
    for rows in range(2, 30):
        recipe.of(ones(rows))
    assert len(recipe.known) <= 6
    assert next(iter(recipe.known.values())) is first


def test_a_parameter_in_another_stage_is_refused_with_both() -> None:
    recipe = recipe_of(lambda m, b: m[2](m[1](m[0](b.x))) if len(b.x) == 3 else m[0](m[1](m[2](b.x))))
    recipe.of(ones(3))
    with pytest.raises(JobRefused, match=r"uses 0.bias in stage 1 and not in stage 0.*--plan data"):
        recipe.of(ones(4))


def test_a_layer_that_the_first_way_leaves_out_lives_near_its_neighbours() -> None:
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    model = nn.ModuleDict({"last": nn.Linear(4, 4), "blocks": blocks})

    def forward(m: Any, b: Batch) -> Tensor:
        x = b.x
        for i, block in enumerate(m["blocks"]):
            if i != len(x) - 3:
                x = block(x)
        return m["last"](x).sum()

    recipe = CutRecipe(model, Objective(None, forward), ["blocks.2"], {}, {})
    cuts = [recipe.of(ones(rows)) for rows in (3, 4, 5, 6)]  # without block 0, 1, 2, 3
    assert cuts[0].homes["blocks.0.weight"] == 0
    assert [sum(isinstance(call.what, str) for call in cut.segments[1].calls) for cut in cuts] == [3, 3, 2, 2]

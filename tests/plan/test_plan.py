import string
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import ORDERS, TRANSPORTS, Plan, Stage, equal_shares, parse_fields, spell

assignments = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any).map(tuple)
words = st.text(string.ascii_letters + string.digits + "+-./", min_size=1)


@given(assign=assignments, seed=st.integers(0, 2**33), torch=words, sync=st.booleans(), to=st.sampled_from(TRANSPORTS))
def test_the_text_of_a_plan_is_the_plan(assign: tuple[int, ...], seed: int, torch: str, sync: bool, to: str) -> None:
    plan = Plan(Numerics(seed=seed, shards=sum(assign), torch=torch, sync_batchnorm=sync), assign, to)
    assert Plan.parse(str(plan)) == plan
    assert str(Plan.parse(str(plan))) == str(plan)


@given(assign=assignments, data=st.data())
def test_every_shard_has_one_worker_in_any_batch(assign: tuple[int, ...], data: st.DataObject) -> None:
    plan = Plan(Numerics(shards=sum(assign)), assign)
    num_shards = data.draw(st.integers(1, sum(assign)))
    shares = [plan.shards_of(rank, num_shards) for rank in range(plan.workers)]
    assert list(chain(*shares)) == list(range(num_shards))
    assert all(len(share) <= count for share, count in zip(shares, assign, strict=True))


@given(shards=st.integers(1, 100), workers=st.integers(1, 20))
def test_equal_shares_differ_by_at_most_one_and_the_first_are_larger(shards: int, workers: int) -> None:
    shares = equal_shares(shards, workers)
    assert sum(shares) == shards
    assert len(shares) == workers
    assert max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True)


def test_a_person_may_edit_the_text() -> None:
    text = str(Plan(Numerics(shards=8), (4, 4))).replace("[4, 4]", "[5,3]") + "\n# uneven, by hand\n"
    assert Plan.parse(text).assign == (5, 3)
    assert Plan.parse('numerics = "shards=2"\nassign = [2]').transport == "processes"


@pytest.mark.parametrize(
    ("assign", "said"),
    [((4, 3), r"4,3 gives out 7 shards.*has 8"), ((), r"\(empty\)"), ((9, -1), "9,-1"), ((0,), "0 gives out 0")],
)
def test_an_assignment_that_does_not_add_up_is_refused_with_both_sides(assign: tuple[int, ...], said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        Plan(Numerics(shards=8), assign)


def test_an_unknown_transport_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanRefused, match=r"'pigeons' \(known: processes, threads\)"):
        Plan(Numerics(shards=1), (1,), "pigeons")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("who does what", "my.plan is not a plan"),
        ("", r"my.plan has the fields \['transport'\]"),
        ('assign = [1]\nnumerics = "shards=1"\nspeed = 3', "speed"),
        ('assign = 1\nnumerics = "shards=1"', "assign = 1 is no list"),
        ('assign = ["1"]\nnumerics = "shards=1"', "whole numbers"),
        ('assign = [1.0]\nnumerics = "shards=1"', "whole numbers"),
        ('assign = [true]\nnumerics = "shards=1"', "whole numbers"),
        ("assign = [1]\nnumerics = 5", "numerics = 5 is no str"),
        ('assign = [1]\nnumerics = "shards=1"\ntransport = []', "transport = \\[\\] is no str"),
        ('assign = [1]\nnumerics = "shards=1 colour=red"', "colour=red"),
    ],
)
def test_a_text_that_is_no_plan_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        Plan.parse(text, "my.plan")


def test_fields_are_read_before_their_sense_is_checked() -> None:
    fields: dict[str, Any] = parse_fields('assign = [7]\nnumerics = "shards=1"', "plan")
    assert fields["assign"] == [7]
    assert spell(tuple(fields["assign"])) == "7"


names = st.text(string.ascii_letters + string.digits + "._", min_size=1, max_size=12)


@st.composite
def stages_of(draw: st.DrawFn, shards: int) -> list[Stage]:
    """Stages that name the workers 0, 1, ... without a gap, each some of them in any order."""
    workers = draw(st.integers(1, 5))
    groups = [draw(st.permutations(range(workers)))]
    groups += draw(st.lists(st.permutations(range(workers)).map(lambda order: order[:2]), max_size=3))
    layers = iter(draw(st.lists(names, unique=True, max_size=4)))
    stages = []
    for group in draw(st.permutations(groups)):
        cuts = sorted(draw(st.lists(st.integers(0, shards), min_size=len(group) - 1, max_size=len(group) - 1)))
        assign = tuple(b - a for a, b in zip([0, *cuts], [*cuts, shards], strict=True))
        counts = st.lists(st.integers(0, 4), min_size=len(group), max_size=len(group)).filter(any).map(tuple)
        slices = tuple((layer, draw(counts)) for layer, _ in zip(layers, range(draw(st.integers(0, 2))), strict=False))
        stages.append(Stage(draw(names), tuple(group), assign, slices, draw(st.booleans())))
    return stages


@given(data=st.data(), shards=st.integers(1, 9), depth=st.integers(1, 4))
def test_the_text_of_a_plan_with_stages_is_the_plan(data: st.DataObject, shards: int, depth: int) -> None:
    lines = st.lists(st.sampled_from(["F0.0 B0.0", "", "F1.0", "F0.0 B0.0 W0.0"]), min_size=1).map(tuple)
    order = data.draw(st.sampled_from(ORDERS) | lines)
    stages = data.draw(stages_of(shards))
    plan = Plan.staged(
        Numerics(shards=shards), stages, data.draw(st.sampled_from(TRANSPORTS)), order=order, depth=depth
    )
    assert Plan.parse(str(plan)) == plan
    assert str(Plan.parse(str(plan))) == str(plan)


@given(data=st.data(), shards=st.integers(1, 9))
def test_every_shard_has_one_worker_in_every_stage(data: st.DataObject, shards: int) -> None:
    plan = Plan.staged(Numerics(shards=shards), data.draw(stages_of(shards)))
    num_shards = data.draw(st.integers(1, shards))
    held = [[plan.shards_of(rank, num_shards, p) for rank in range(plan.workers)] for p in range(len(plan.stages))]
    for shares in held:
        assert sorted(chain(*shares)) == list(range(num_shards))
    for rank in range(plan.workers):
        assert plan.touched(rank, num_shards) == sorted({shard for shares in held for shard in shares[rank]})
    grid = plan.grid(num_shards, [(False,)] * len(plan.stages))
    assert [[stage.shards_of(rank, num_shards) for rank in range(plan.workers)] for stage in grid.stages] == held


def two(second: str = "", first: str = "") -> str:
    """The text of two stages on two workers, with more fields in either."""
    return (
        f'numerics = "shards=4"\n[[stage]]\nworkers = [0]\nassign = [4]\n{first}'
        f'[[stage]]\nfirst = "head"\nworkers = [1]\n{second or "assign = [4]"}\n'
    )


def test_a_person_may_leave_out_what_has_a_default() -> None:
    plan = Plan.parse(two())
    assert (plan.order, plan.depth, plan.transport, plan.assign) == ("1f1b", 1, "processes", (4, 4))
    assert plan.stages == (Stage("", (0,), (4,)), Stage("head", (1,), (4,)))


def test_a_stage_splits_its_backwards_where_its_order_says_so() -> None:
    lines = ("F0.0 B0.0", "F1.0 B1.0 W1.0")
    split = {
        order: [Plan.staged(Numerics(shards=1), TWO, order=order).splits_backward(p) for p in range(2)]
        for order in ("1f1b", "zero-bubble", lines)
    }
    assert split == {"1f1b": [False, False], "zero-bubble": [True, True], lines: [False, True]}
    plan = Plan.staged(Numerics(shards=1), TWO, order=lines)
    assert [stage.split for stage in plan.grid(1, [(False,)] * 2).stages] == [False, True]
    assert not Plan(Numerics(shards=1), (1,), order="zero-bubble").splits_backward(0), "a whole network is not cut"


TWO = [Stage("", (0,), (1,)), Stage("head", (1,), (1,))]


def test_shards_are_joined_where_layers_are_sliced() -> None:
    sliced = Plan.staged(Numerics(shards=8), [Stage("", (0,), (8,), (("head", (2,)),))])
    assert [sliced.set_size(shards) for shards in (8, 6)] == [8, 6]
    by_three = Plan.staged(Numerics(shards=8, join=3), sliced.stages)
    assert by_three.grid(7, [(False, True, False)]).sets == (range(3), range(3, 6), range(6, 7))
    assert Plan.staged(Numerics(shards=8, join=3), [Stage("", (0,), (8,))]).set_size(8) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (two("assign = [3]"), r"3 gives out 3 shards.*has 4"),
        (two("assign = [2, 2]"), r"stage 1 has the workers 1 and the assignment 2,2"),
        (two("assign = [5, -1]").replace("[1]", "[1, 0]"), "stage 1 has the workers 1,0 and the assignment 5,-1"),
        (two("assign = [2, 2]").replace("[1]", "[1, 1]"), "stage 1 has the workers 1,1: name each worker once"),
        (two().replace("[1]", "[2]"), r"the stages name the workers \[0, 2\]: number them 0, 1, ... without a gap"),
        (two("").replace("assign = [4]", ""), r"my.plan: stage 0 has the fields \['workers'\], a stage has.*at least"),
        (two("assign = [4]\nspeed = 3"), r"my.plan: stage 1 has the fields .*'speed'"),
        (two("assign = [4]\nrecompute = 1"), "my.plan: stage 1: recompute = 1 is no bool"),
        (two("assign = [4]\nfirst = 3").replace('first = "head"\n', ""), "my.plan: stage 1: first = 3 is no str"),
        (two("assign = [4.0]"), "my.plan: stage 1: assign = .* whole numbers"),
        (two("assign = [4]\n[stage.slices]\nhead = 4"), "my.plan: stage 1: head = 4 is no list"),
        (two("assign = [4]\n[stage.slices]\nhead = [true]"), "my.plan: stage 1: head = .* whole numbers"),
        (two("assign = [4]\n[stage.slices]\nhead = [2, 2]"), "stage 1 gives the slices 2,2 of head to the workers 1:"),
        (two("assign = [4]\n[stage.slices]\nhead = [0]"), "stage 1 gives the slices 0 of head"),
        (
            two().replace("[[stage]]", 'order = "zigzag"\n[[stage]]', 1),
            r"'zigzag' \(known: 1f1b, gpipe, interleaved, zero-bubble\)",
        ),
        (two().replace("[[stage]]", "order = [1, 2]\n[[stage]]", 1), "my.plan: order = .*is no str"),
        (
            two().replace("shards=4", "shards=4 sync_batchnorm=true"),
            "sync_batchnorm needs all shards of a step at once",
        ),
        (two() + "[x]", "x"),
        (two().replace("[[stage]]", "depth = 0\n[[stage]]", 1), "depth = 0: the warm-up is 1 or more"),
        ('numerics = "shards=4"\n[stage]\nworkers = [0]\nassign = [4]', r"write every stage under \[\[stage\]\]"),
        ('numerics = "shards=4"\nstage = 4', r"write every stage under \[\[stage\]\]"),
        ('numerics = "shards=4"\nstage = [4]', r"write every stage under \[\[stage\]\]"),
        ('assign = [4]\nnumerics = "shards=4"\norder = "1f1b"', r"'order'.*\[\[stage\]\] tables instead of assign"),
        ('assign = [4]\nnumerics = "shards=4"\n[[stage]]\nworkers = [0]\nassign = [4]', "'assign'.*'stage'"),
        ('numerics = "shards=4"\nstage = []', r"the stages name the workers \[\]"),
    ],
)
def test_stages_that_do_not_fit_are_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        Plan.parse(text, "my.plan")

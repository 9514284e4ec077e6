import string
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.numerics import Numerics
from samestep.plan import TRANSPORTS, Plan, equal_shares, parse_fields, spell

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

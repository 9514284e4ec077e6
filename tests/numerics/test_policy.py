"""Sync policies as text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics, parse_line
from samestep.numerics.policy import Local, Nesterov, Policy, Stale, check_policy, parse_policy

numbers = st.integers(1, 10**6)
rates = st.floats(0, 100, exclude_min=True)
momenta = st.floats(0, 1, exclude_max=True)
outers = st.none() | st.builds(Nesterov, rates, momenta)
policies = st.builds(Stale, numbers) | st.builds(Local, numbers, st.none() | numbers, outers)


@given(policies)
def test_a_policy_reads_back_as_it_was_written(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy


@given(policies)
def test_colons_say_the_same_where_a_shell_minds_parentheses(policy: Policy) -> None:
    plain = re.sub(r"[(,]", ":", str(policy)).rstrip(")")
    assert not set("(),") & set(plain)
    assert parse_policy(plain) == policy


@given(policies)
def test_it_fits_in_the_line_of_numerics(policy: Policy) -> None:
    numerics = Numerics(sync=str(policy))
    assert parse_line(numerics.line())["sync"] == str(policy)


@given(st.text("stalelocalexact(),:=0123456789.-nworkersouter ", max_size=30))
def test_any_other_text_is_refused_and_named(text: str) -> None:
    try:
        policy = parse_policy(text)
    except PlanRefused as error:
        said = str(error)
    else:
        said = f"--sync {text!r}"
        assert policy is None or parse_policy(str(policy)) == policy
    assert "--sync" in said
    assert repr(text) in said


def test_no_policy_is_exact() -> None:
    assert parse_policy("exact") is None
    assert parse_policy("stale(0)") is None, "gradients of this very step"


def test_defaults_of_the_outer_optimizer_are_those_of_diloco() -> None:
    assert parse_policy("local(500,outer=nesterov)") == Local(500, None, Nesterov(0.7, 0.9))
    assert Local(16).num_workers(8) == 8
    assert Local(16, 2).num_workers(8) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stale(-1)", "gradients of the future; give 0 or more"),
        ("stale(1,workers=2)", r"stale has no option 'workers=2'; write stale\(1\)"),
        ("stale(one)", "'one' is no whole number"),
        ("local(0)", "never take a step never meet; give at least 1"),
        ("local(-3)", "give at least 1 step"),
        ("local()", "'' is no whole number"),
        ("local(4,workers=two)", "'two' is no whole number"),
        ("local(4,every=2)", "'every=2' is no option of local: it has workers=N and outer="),
        ("local(4,outer=adam)", "the outer optimizer is nesterov"),
        ("local(4,outer=nesterov:0:0.9)", "LR above 0"),
        ("local(4,outer=nesterov:0.7:1)", "MOMENTUM from 0 up to 1"),
        ("local(4,outer=nesterov:0.7)", "nesterov:LR:MOMENTUM"),
        ("async", "is not known: it is exact, stale"),
        ("", "is not known"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(text: str, words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        parse_policy(text, "Job.sync")


def test_logical_workers_share_the_shards_evenly() -> None:
    check_policy(Local(4, 2), 8)
    check_policy(Local(4), 7)
    check_policy(Stale(1), 7)
    check_policy(None, 7)
    for workers in (0, 3, 16):
        with pytest.raises(PlanRefused, match=rf"{workers} logical workers cannot share the 8 shards"):
            check_policy(Local(4, workers), 8)

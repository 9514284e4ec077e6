"""Who says what when several could."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from samestep.errors import JobRefused, PlanRefused
from samestep.job.job import Job
from samestep.launch.request.request import Request
from samestep.launch.request.resolve import chosen_numerics, make_plan, with_numerics
from samestep.numerics.numerics import Numerics, parse_line
from samestep.plan.plan import Plan


def request(**fields: Any) -> Request:
    return Request.of(**{"run": "test", "default_workers": 2, **fields})


def job(**fields: Any) -> Job:
    return Job(
        model=lambda: nn.Linear(2, 2),
        loss=F.mse_loss,
        optimizer=lambda params: optim.SGD(params, lr=0.1),
        data=(torch.zeros(100, 2), torch.zeros(100, 2)),
        **{"batch_size": 64, **fields},
    )


def plan_of(given_request: Request, made: Job | None = None, optimizer: str = "SGD") -> Plan:
    chosen = chosen_numerics(given_request)
    found = with_numerics(made or job(), chosen, given_request)
    return make_plan(found, chosen, given_request, optimizer, found.build_model())


def resolved(given_request: Request, made: Job | None = None) -> Job:
    return with_numerics(made or job(), chosen_numerics(given_request), given_request)


@given(workers=st.integers(1, 4), default_workers=st.integers(1, 64))
def test_the_numerics_are_never_derived_from_the_number_of_workers(workers: int, default_workers: int) -> None:
    numerics = plan_of(request()).numerics
    assert plan_of(request(workers=workers, default_workers=default_workers)).numerics == numerics
    assert plan_of(request(default_workers=default_workers)).numerics == numerics
    assert numerics.shards == 4


def test_the_default_is_a_worker_per_core_and_at_most_a_worker_per_shard() -> None:
    assert plan_of(request(default_workers=2)).assign == (2, 2)
    assert plan_of(request(default_workers=64)).assign == (1, 1, 1, 1)
    assert plan_of(request(default_workers=3)).assign == (2, 1, 1)
    assert plan_of(request(workers=3, shards=8)).assign == (3, 3, 2)


def test_the_command_line_wins_over_the_job_and_the_job_over_the_default() -> None:
    made = job(shards=6, seed=3, sync_batchnorm=True, precision="bfloat16")
    numerics = plan_of(request(), made).numerics
    assert (numerics.shards, numerics.seed, numerics.sync_batchnorm, numerics.precision) == (6, 3, True, "bfloat16")
    numerics = plan_of(request(shards=2, seed=9, numerics="sync_batchnorm=false precision=float32"), made).numerics
    assert (numerics.shards, numerics.seed, numerics.sync_batchnorm, numerics.precision) == (2, 9, False, "float32")
    assert plan_of(request(threads=2)).numerics.threads == 2


def test_the_printed_line_and_the_printed_plan_are_accepted() -> None:
    first = plan_of(request(shards=8, seed=5, assign=(5, 3), threads=2))
    assert plan_of(request(numerics=first.numerics.line(), assign=(5, 3))) == first
    assert plan_of(request(plan="my.plan", plan_text=str(first))) == first
    assert first.numerics.torch == torch.__version__
    assert Numerics(**parse_line(first.numerics.line())) == first.numerics  # type: ignore[arg-type]


def test_a_plans_assignment_gives_way_to_the_command_line() -> None:
    text = str(plan_of(request(shards=8, assign=(5, 3))))
    assert plan_of(request(plan="my.plan", plan_text=text, assign=(1, 7))).assign == (1, 7)
    assert plan_of(request(plan="my.plan", plan_text=text, workers=4)).assign == (2, 2, 2, 2)
    assert plan_of(request(plan="my.plan", plan_text=text, transport="threads")).transport == "threads"
    assert plan_of(request(plan="my.plan", plan_text=text.replace("processes", "threads"))).transport == "threads"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shards": 4, "numerics": "shards=8"}, "--shards says shards=4, --numerics says shards=8: leave one of them"),
        ({"seed": 1, "plan": "p", "plan_text": 'numerics = "seed=2"\nassign=[4]'}, "--plan p says seed=2"),
        ({"numerics": "seed=1", "plan": "p", "plan_text": 'numerics = "seed=2"\nassign=[4]'}, "--numerics says seed=1"),
        ({"shards": 0}, "--shards says shards=0; it must be at least 1"),
        ({"threads": 0}, "--threads says threads=0; it must be at least 1"),
        ({"seed": -1}, "--seed says seed=-1; it must be at least 0"),
        ({"numerics": "shards=-2"}, "--numerics says shards=-2"),
        ({"workers": 0}, "--workers 0: a run needs at least 1 worker"),
        ({"workers": -3}, "--workers -3"),
        ({"workers": 5}, "use --workers 4, or --shards 5 .*S is part of the numbers"),
        ({"workers": 3, "assign": (2, 2)}, "--workers 3 and the assignment 2,2 of 2 workers differ"),
        ({"assign": (2, 1)}, "2,1 gives out 3 shards, the batch has 4"),
        ({"assign": (5, -1)}, "5,-1"),
        ({"numerics": "isa=Z80"}, "the numerics ask for isa=Z80"),
        ({"numerics": "optimizer=Adam"}, "optimizer=Adam, this run has optimizer=SGD"),
        ({"numerics": "torch=1.0"}, "torch=1.0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_both_sides(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        plan_of(request(**fields))


def test_what_is_said_twice_alike_is_no_clash() -> None:
    assert plan_of(request(shards=8, numerics="shards=8", workers=2, assign=(4, 4))).numerics.shards == 8


def test_a_length_on_the_command_line_stands_alone() -> None:
    made = job(epochs=3, steps=7)
    assert (resolved(request(), made).epochs, resolved(request(), made).steps) == (3, 7)
    assert (resolved(request(steps=50), made).epochs, resolved(request(steps=50), made).steps) == (None, 50)
    assert (resolved(request(epochs=9), made).epochs, resolved(request(epochs=9), made).steps) == (9, None)
    both = resolved(request(epochs=9, steps=50), made)
    assert (both.epochs, both.steps) == (9, 50)


def test_the_job_is_checked_as_overridden() -> None:
    with pytest.raises(JobRefused, match="100 shards are more than the 64 rows"):
        resolved(request(shards=100))
    made = job()
    assert resolved(request(seed=4), made).seed == 4
    assert made.seed == 0, "the job itself stays as it was"


def test_a_small_batch_has_fewer_shards_by_default() -> None:
    assert plan_of(request(default_workers=8), job(batch_size=16)).assign == (1, 1)
    assert plan_of(request(default_workers=8), job(batch_size=3)).assign == (1,)

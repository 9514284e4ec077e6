"""Every contender trains the same job: its losses are those of a plain loop, up to rounding.

That also shows that they are compared fairly: the same parameters, batches, optimizer, scheduler and clipping.
"""

import sys
import uuid
from pathlib import Path

import pytest

from samestep.bench import rounds
from samestep.bench.contestants import Contestant, maker, own_contestants
from samestep.bench.rounds import Measurements, TimeBudget, race
from samestep.launch.request.request import Request

JOBS = Path(__file__).parents[2] / "jobs" / "compared.py"
PEERS = ("plain 1", "plain 2", "ddp 2", "fsdp2 2", "tp 2", "pp 2")


@pytest.fixture(autouse=True)
def _equal_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no contender warm up for fewer steps because its first one was slow: on a busy machine any may be."""
    monkeypatch.setattr(rounds, "LONG", float("inf"))


def request(function: str) -> Request:
    return Request.of(
        run=uuid.uuid4().hex[:12], file=str(JOBS), function=function, default_workers=2, path=tuple(sys.path)
    )


def found(function: str, *names: str) -> dict[str, Measurements]:
    """After a trial turn and two rounds of two steps."""
    asked = request(function)
    plans = [name.split()[1] for name in names if name.startswith("samestep")]
    ours = [one for plan in plans for one in own_contestants(asked.but(plan=plan, workers=2))]
    contestants = [one for one in [*ours, *map(Contestant, PEERS)] if one.name in names]
    makers = {one.name: maker(one, asked, warm_heap=False) for one in contestants}
    return race(makers, TimeBudget(0.1, rounds=2, steps=2))


def check_same(found: dict[str, Measurements], names: set[str]) -> None:
    """names: who applies."""
    assert {name for name, one in found.items() if not one.refused} == names
    assert {name: one.failed for name, one in found.items() if one.failed} == {}
    plain = found["plain 1"].losses
    assert len(plain) == 4
    for name in names:
        assert found[name].losses == pytest.approx(plain, rel=1e-5), name


def test_a_sequential_with_clipping_scheduler_and_fused_optimizer() -> None:
    races = found("mlp", "samestep data", "samestep pipeline", *PEERS)
    check_same(races, {"samestep data", "samestep pipeline", *PEERS})
    assert races["tp 2"].note == races["fsdp2 2"].note == "torch has no fused SGD for DTensors: foreach instead"


def test_a_model_of_its_own_is_traced_for_the_pipeline_and_has_no_pair_for_tensor_parallelism() -> None:
    races = found("residual", "plain 1", "ddp 2", "fsdp2 2", "tp 2", "pp 2")
    check_same(races, {"plain 1", "ddp 2", "fsdp2 2", "pp 2"})
    assert races["tp 2"].refused == "no two Linear layers follow one another in a Sequential"


@pytest.mark.slow
def test_a_weighted_sum_in_forward() -> None:
    races = found("forward", "samestep data", "plain 1", "ddp 2", "pp 2")
    assert races["pp 2"].refused == "torch's pipelining wants a loss separate from the model, and the job has forward="
    check_same(races, {name for name in races if name != "pp 2"})


def test_rows_that_cannot_be_dealt_out_evenly() -> None:
    races = found("uneven", "plain 1", "ddp 2", "pp 2")
    assert races["pp 2"].refused is None  # five microbatches of five rows
    check_same(races, {"plain 1", "ddp 2", "pp 2"})


def test_a_contender_that_fails_says_why_and_the_others_go_on() -> None:
    races = found("homely", "plain 1", "ddp 2")
    assert races["ddp 2"].failed == "ValueError: the loss stays at home"
    assert len(races["plain 1"].medians) == 2

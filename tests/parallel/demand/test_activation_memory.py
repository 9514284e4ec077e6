"""The activations counted are those of the schedule: per shard in flight, memory that is shared once."""

import pytest
import torch
from torch import Tensor, nn

from samestep.numerics.numerics import Numerics
from samestep.parallel.cutting.cut import Cut, cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.demand.activation_memory import _HeldByWorker, activations
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.parallel.gradients.deferred import DeferredGradients, deferring
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.plan.plan import Plan, Stage
from samestep.schedule.passes import schedule_of

ROWS, SHARDS = 10, 6
WIDE = ROWS * 100 * 4  # bytes of a hidden layer


class Model(nn.Module):
    """Three hidden layers, each the next one's input and its own output's: kept once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(100, 100),
            nn.Linear(100, 100),
            nn.Linear(100, 100),
            nn.Linear(100, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


def structure(stages: list[Stage], slices: tuple[str, ...] = ()) -> Cut:
    starts = [stage.first for stage in stages[1:]]
    recording = record(Model(), lambda m, b: m(b[0]).sum(), (torch.randn(ROWS, 100),), starts, slices)
    return cut(recording, Model(), len(stages), dict.fromkeys(slices, (4,)))


def peaks(stages: list[Stage], order: str, slices: tuple[str, ...] = ()) -> list[float]:
    """Of every worker, in hidden layers, gradients that pass by left out."""
    plan = Plan.staged(Numerics(shards=SHARDS), stages, order=order)
    found = structure(stages, slices)
    grid = plan.grid(SHARDS, found.sliced)
    schedules = [schedule_of(grid, order, rank, clip=False) for rank in range(plan.workers)]
    step = PlannedStep(plan, found, SHARDS)
    return [activations(step, rank, schedules[rank]) / WIDE for rank in range(plan.workers)]


PASSING = 2.0
"""Around one call in backward: the gradients of a hidden layer's output and of its input."""


def test_one_shard_at_a_time() -> None:
    [peak] = peaks([Stage("", (0,), (SHARDS,))], "1f1b")
    assert peak == pytest.approx(4 + PASSING), "the batch's rows and three outputs of ReLU, which Linear keeps too"


def test_gpipe_keeps_all_shards_and_1f1b_as_many_as_stages_follow() -> None:
    stages = [Stage("", (0,), (SHARDS,)), Stage("c", (1,), (SHARDS,))]
    first, second = peaks(stages, "gpipe")
    assert first == pytest.approx(3 * SHARDS + PASSING), (
        "the rows, and what ReLU made twice; the last goes over the cut"
    )
    assert second == pytest.approx(2 * SHARDS + PASSING), "what came over the cut, and what ReLU made"
    first, second = peaks(stages, "1f1b")
    assert first == pytest.approx(3 * 2 + PASSING)
    assert second == pytest.approx(2 * 1 + PASSING, abs=1.0), "one more may have arrived"


def test_weight_gradients_that_come_later_keep_inputs_and_gradients() -> None:
    stages = [Stage("", (0,), (SHARDS,)), Stage("c", (1,), (SHARDS,))]
    first, second = peaks(stages, "zero-bubble")
    assert first == pytest.approx(3 * 2 + PASSING), "made at once; what ReLU made last is gone when gradients stay"
    # One set behind: of that, the inputs of c and d and the gradient of c's output (d's is narrow).
    # Of the one in c's backward the same, and the gradient that goes back; one more may have arrived.
    assert second == pytest.approx(3 + 3 + 1, abs=1.0)
    assert second == pytest.approx(peaks(stages, "1f1b")[1] + 3, abs=0.1)


def test_what_is_left_is_what_a_recording_counts() -> None:
    """Of Linears inside a module that is called whole, too."""
    model, x = nn.Sequential(Model(), nn.Tanh()), torch.randn(ROWS, 100)
    recording = record(model, lambda m, b: m(b[0]).sum(), (x,), [], [])
    counted = [left for call in recording.calls for left in call.deferrable]
    write_weight_gradients_once(model, lambda param: lambda: None)
    later = DeferredGradients()
    with deferring(later):
        model(x).sum().backward()
    weights = [makes[0].args for weight, makes in later._deferred.values() if weight.dim() == 2]  # type: ignore[attr-defined]
    assert sum(nbytes for _, nbytes in counted) == sum(rows.nbytes for rows, _, _ in weights)
    assert sum(storage.nbytes for storage, _ in counted) == sum(inputs.nbytes for _, inputs, _ in weights)
    assert len(counted) == 4


def test_what_is_kept_and_left_is_counted_once() -> None:
    """In the end nothing is held."""
    stages = [Stage("", (0,), (SHARDS,)), Stage("c", (1,), (SHARDS,), (), True)]
    plan, found = Plan.staged(Numerics(shards=SHARDS), stages, order="zero-bubble"), structure(stages)
    for rank in range(2):
        worker = _HeldByWorker(PlannedStep(plan, found, SHARDS), rank)
        for action in schedule_of(plan.grid(SHARDS, found.sliced), "zero-bubble", rank, clip=False):
            worker.do(action)
        assert worker.ledger.now == 0


def test_recomputation_keeps_what_the_stage_takes() -> None:
    stages = [Stage("", (0,), (SHARDS,)), Stage("c", (1,), (SHARDS,), (), True)]
    assert peaks(stages, "gpipe")[1] == pytest.approx(SHARDS + 1 + PASSING)
    assert peaks(stages, "1f1b")[1] == pytest.approx(1 + 1 + PASSING, abs=1.0), "one more may have arrived"


def test_a_sliced_pair_keeps_its_input_whole_and_the_rest_in_slices() -> None:
    stages = [Stage("", (0, 1), (3, 3), (("b", (3, 1)), ("c", (3, 1))))]
    most, least = peaks(stages, "1f1b", ("b", "c"))
    # b's input of all shards, and c's in slices; for a moment each own slice's summand of c's output, as wide as it
    assert most - least == pytest.approx((3 - 1) / 4 * SHARDS + (3 - 1) * SHARDS)
    kept = SHARDS * (1 + 1 / 4)
    own = 3 * 2  # of three shards: the batch's rows and what ReLU made before b; nothing after c yet
    around = SHARDS * 2 / 4  # ReLU in one slice: the gradients of what it makes and takes
    assert least == pytest.approx(kept + own + SHARDS + SHARDS + around), "all rows of dy, and one slice's dx"

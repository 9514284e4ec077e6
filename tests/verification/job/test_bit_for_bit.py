"""Which difference is named, and why a sum of gradients is another one: pure, on made-up records."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.verification.causes import Cause
from samestep.verification.job.bit_for_bit import compare_bits, explain_sum, swapped_shards
from samestep.verification.record import Key, Record, RecordWriter


def shards(count: int, seed: int, size: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {str(n): torch.randn(size, generator=generator, dtype=torch.float64) for n in range(count)}


def summed(parts: dict[str, Tensor], factors: list[float]) -> Tensor:
    return torch.stack([part * f for part, f in zip(parts.values(), factors, strict=True)]).sum(0)


def judged(parts: dict[str, Tensor], factors: list[float]) -> tuple[Cause, str]:
    return explain_sum(summed(parts, factors), summed(parts, [1.0] * len(parts)), parts, dict.fromkeys(parts, 1))


@given(st.integers(2, 8), st.integers(0, 99), st.data())
def test_any_shards_left_out_are_a_missing_reduction(count: int, seed: int, data: st.DataObject) -> None:
    lost = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    cause, why = judged(shards(count, seed), [0.0 if n in lost else 1.0 for n in range(count)])
    assert cause == Cause.MISSING_REDUCTION
    assert str(sorted(lost)) in why


@given(st.integers(2, 8), st.integers(0, 99), st.data())
def test_any_shards_added_twice_are_double_counting(count: int, seed: int, data: st.DataObject) -> None:
    twice = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    cause, _ = judged(shards(count, seed), [2.0 if n in twice else 1.0 for n in range(count)])
    assert cause == Cause.DOUBLE_COUNTING


@given(st.integers(1, 8), st.integers(0, 99), st.sampled_from([0.25, 0.5, 2.0, 4.0, -1.0]))
def test_one_factor_for_all_is_the_losss_weight(count: int, seed: int, factor: float) -> None:
    cause, why = judged(shards(count, seed), [factor] * count)
    assert cause == Cause.LOSS_WEIGHTING
    assert f"{factor:.6g} times" in why


def test_uneven_weights_are_the_losss_weight_too() -> None:
    cause, _ = judged(shards(4, 0), [0.8, 1.2, 1.2, 0.8])
    assert cause == Cause.LOSS_WEIGHTING


def test_another_order_of_additions_is_rounding() -> None:
    parts = shards(4, 0)
    assert judged(parts, [1 + 1e-9, 1, 1, 1])[0] == Cause.ROUNDING


def test_what_no_factor_explains_is_not_explained() -> None:
    parts = shards(4, 0)
    assert explain_sum(shards(1, 5)["0"], summed(parts, [1] * 4), parts, {})[0] == Cause.UNKNOWN


@given(st.integers(2, 6), st.integers(0, 99), st.data())
def test_another_parameters_gradients_in_a_sum_are_told_from_lost_ones(
    count: int, seed: int, data: st.DataObject
) -> None:
    lost = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    own, strange = shards(count, seed), shards(count, seed + 1000)
    wanted = summed(own, [1.0] * count)
    without = [0.0 if n in lost else 1.0 for n in range(count)]
    found = summed(own, without) + summed(strange, [1.0 - kept for kept in without])
    assert swapped_shards(found, wanted, own, strange) == [str(n) for n in sorted(lost)]
    assert swapped_shards(summed(own, without), wanted, own, strange) == []


def record(folder: Path, *steps: dict[Key, float | Tensor], rank: int = 0) -> Record:
    folder.mkdir(exist_ok=True)
    recorder = RecordWriter(folder, rank)
    for number, values in enumerate(steps):
        for key, value in values.items():
            recorder.note(key, value)
        recorder.end_step(number)
    return Record(folder)


GRADIENT, BUFFER, LOSS = Key("gradient", "w"), Key("buffer", "0.running_mean"), Key("loss", "", 2)


@pytest.mark.parametrize(
    ("changed", "cause"),
    [({GRADIENT, BUFFER}, Cause.LOSS_WEIGHTING), ({BUFFER}, Cause.BATCHNORM), ({LOSS, GRADIENT}, Cause.HIDDEN_STATE)],
)
def test_the_earliest_difference_in_a_step_is_the_cause(tmp_path: Path, changed: set[Key], cause: Cause) -> None:
    """Written in another order than a step makes them."""
    values: dict[Key, float | Tensor] = {BUFFER: torch.ones(3), GRADIENT: torch.ones(4), LOSS: 1.0}
    other = {key: value * 2 if key in changed else value for key, value in values.items()}
    found = compare_bits(record(tmp_path / "a", values, other), record(tmp_path / "b", values, values)).finding
    assert found is not None
    assert found.step == 1
    assert found.cause == cause


def test_any_worker_that_differs_is_named(tmp_path: Path) -> None:
    wanted = record(tmp_path / "one", {BUFFER: torch.ones(3)})
    record(tmp_path / "many", {BUFFER: torch.ones(3)})
    record(tmp_path / "many", {BUFFER: torch.ones(3)}, rank=1)
    many = record(tmp_path / "many", {BUFFER: torch.tensor([1.0, 1.0, 1.5])}, rank=2)
    found = compare_bits(many, wanted).finding
    assert found is not None
    assert found.worker == 2


def test_equal_records_are_counted_and_not_found_different(tmp_path: Path) -> None:
    values: dict[Key, float | Tensor] = {BUFFER: torch.ones(3), GRADIENT: torch.ones(4), LOSS: float("nan")}
    exact = compare_bits(record(tmp_path / "a", values, values), record(tmp_path / "b", values, values))
    assert exact.finding is None
    assert exact.compared == {"buffer": 2, "gradient": 2, "loss": 2}

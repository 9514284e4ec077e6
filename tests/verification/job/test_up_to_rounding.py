"""Up to rounding: what perturbed runs are apart is the bound, and coupled rows are seen."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.verification.causes import Cause
from samestep.verification.job.up_to_rounding import SAFETY, compare_up_to_rounding, is_coupled
from samestep.verification.record import Key, Record, RecordWriter

GRADIENT = torch.linspace(-1, 1, 64, dtype=torch.float64)
NOISE = torch.cos(torch.arange(64, dtype=torch.float64))


def record(folder: Path, gradient: Tensor) -> Record:
    folder.mkdir()
    recorder = RecordWriter(folder, 0)
    recorder.note(Key("gradient", "w"), gradient)
    recorder.end_step(0)
    return Record(folder)


@pytest.mark.parametrize(("times", "is_rounding"), [(1.0, True), (SAFETY / 2, True), (SAFETY * 2, False)])
def test_the_bound_is_what_perturbed_runs_are_apart(tmp_path: Path, times: float, is_rounding: bool) -> None:
    wanted = record(tmp_path / "plain", GRADIENT)
    moved = record(tmp_path / "moved", GRADIENT + NOISE * 1e-5)
    found = compare_up_to_rounding(record(tmp_path / "found", GRADIENT + NOISE * 1e-5 * times), wanted, [moved])
    assert (found.finding is None) == is_rounding
    assert found.compared == 1
    assert found.furthest is not None


def test_a_factor_is_the_losss_weight_and_said(tmp_path: Path) -> None:
    wanted = record(tmp_path / "plain", GRADIENT)
    found = compare_up_to_rounding(record(tmp_path / "found", GRADIENT * 0.5), wanted, []).finding
    assert found is not None
    assert found.cause == Cause.LOSS_WEIGHTING
    assert "0.5 times" in found.why


MEANS = st.floats(-5, 5)


@given(MEANS, MEANS, st.floats(0.01, 0.99))
def test_a_mean_of_two_means_is_not_coupled_whatever_the_weights(first: float, second: float, weight: float) -> None:
    assert not is_coupled(first, second, first * weight + second * (1 - weight), 1e-4)


def test_in_batch_negatives_are_coupled() -> None:
    assert is_coupled(2.1, 2.2, 2.8, 1e-4)
    assert not is_coupled(2.1, 2.2, 2.2 + 1e-6, 1e-4)

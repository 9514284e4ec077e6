"""Where the first NaN of a run is."""

from pathlib import Path

import pytest
import torch

from samestep.verification.causes import Cause
from samestep.verification.job.first_not_finite import not_finite
from samestep.verification.record import Key, Record, RecordWriter

NAN = torch.tensor([1.0, float("nan")])
FINE = torch.ones(2)


def run(folder: Path, *steps: dict[Key, torch.Tensor], rank: int = 0) -> Record:
    recorder = RecordWriter(folder, rank)
    for number, values in enumerate(steps):
        for key, value in values.items():
            recorder.note(key, value)
        recorder.end_step(number)
    return Record(folder)


def test_the_first_is_the_earliest_in_a_step_of_all_workers(tmp_path: Path) -> None:
    local, whole, update = Key("local gradient", "w", 3), Key("gradient", "w"), Key("parameter", "w")
    run(tmp_path, {local: FINE, whole: FINE}, {whole: NAN, update: NAN})
    found = not_finite(run(tmp_path, {local: FINE}, {local: NAN, whole: NAN}, rank=1))
    assert found is not None
    place = (found.cause, found.step, found.kind, found.name, found.shard, found.worker)
    assert place == (Cause.NOT_FINITE, 1, "local gradient", "w", 3, 1)
    assert "the first of 4 of this step" in str(found)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_element_of_many_is_enough(tmp_path: Path, value: float) -> None:
    large = torch.zeros(200_000)
    large[77_777] = value
    assert not_finite(run(tmp_path, {Key("parameter", "w"): large})) is not None


@pytest.mark.parametrize("kind", ["activation", "rows", "weights", "random stream"])
def test_a_mask_in_what_goes_through_a_layer_is_no_alarm(tmp_path: Path, kind: str) -> None:
    masked = torch.tensor([0.0, float("-inf")])
    assert not_finite(run(tmp_path, {Key(kind, "mask", 0): masked, Key("gradient", "w"): FINE})) is None

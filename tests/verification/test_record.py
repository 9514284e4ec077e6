"""Records: what is written is read, in order, and folds keep what verify asks of them."""

import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.verification.record import FOLDED, Key, Record, RecordWriter, folded, relative_distance, tensor_digest


def test_what_is_noted_is_read_in_its_order(tmp_path: Path) -> None:
    for rank in (0, 1):
        recorder = RecordWriter(tmp_path, rank)
        recorder.note(Key("gradient", "a|b"), torch.arange(3.0) + rank)
        recorder.note(Key("activation", "layer", shard=2), torch.ones(2, 2))
        recorder.note(Key("loss", ""), 0.5)
        recorder.note(Key("weights", "a in forward"), "bits")
        recorder.end_step(7)
    record = Record(tmp_path)
    assert record.steps() == [7]
    assert record.ranks(7) == [0, 1]
    found = record.of(7)
    assert list(found) == [
        Key("gradient", "a|b"),
        Key("activation", "layer", 2),
        Key("loss", ""),
        Key("weights", "a in forward"),
    ]
    assert [noted.values.tolist() for noted in found[Key("gradient", "a|b")]] == [[0, 1, 2], [1, 2, 3]]
    assert found[Key("activation", "layer", 2)][0].shape == (2, 2)
    assert found[Key("weights", "a in forward")][0].text == "bits"


def test_the_second_call_of_a_layer_is_another_part(tmp_path: Path) -> None:
    recorder = RecordWriter(tmp_path, 0)
    for value in (1.0, 2.0, 3.0):
        recorder.note(Key("activation", "layer", 0), value)
    recorder.end_step(0)
    assert [key.part for key in Record(tmp_path).of(0)] == [0, 1, 2]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    recorder = RecordWriter(tmp_path, 0)
    recorder.note(Key("loss", ""), 1.0)
    assert Record(tmp_path).steps() == []
    recorder.end_step(0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000.worker-0.safetensors"]
    assert stat.S_ISREG((tmp_path / "step-000000.worker-0.safetensors").stat().st_mode)


@given(st.builds(Key, st.sampled_from(["gradient", "rows"]), st.text(max_size=20), st.integers(-1, 99)))
def test_keys_are_read_as_they_were_written(key: Key) -> None:
    assert Key.parse(str(key)) == key


@given(st.integers(1, 400), st.integers(1, 50), st.floats(-4, 4))
def test_a_fold_is_linear_and_counts_every_element(size: int, width: int, factor: float) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    fold = folded(tensor, width)
    assert len(fold) == -(-size // width)
    assert torch.allclose(folded(tensor * factor, width), fold * factor)
    assert fold.sum() == pytest.approx(float(tensor.sum()))


def test_small_tensors_are_kept_whole_and_large_ones_hashed_whole() -> None:
    tensor = torch.zeros(3 * FOLDED)
    assert folded(tensor[:FOLDED]).tolist() == tensor[:FOLDED].tolist()
    other = tensor.clone()
    other[5], other[4] = 1e-20, -1e-20  # a fold does not see it
    assert torch.equal(folded(tensor), folded(other))
    assert tensor_digest(tensor) != tensor_digest(other)
    assert tensor_digest(tensor) != tensor_digest(tensor.view(3, -1))
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))


def test_distance_is_infinite_from_nothing() -> None:
    assert relative_distance([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    assert relative_distance([torch.ones(2)], [torch.zeros(2)]) == float("inf")
    assert relative_distance([torch.full((2,), torch.nan)], [torch.ones(2)]) == float("inf")
    assert relative_distance([torch.tensor([3.0])], [torch.tensor([2.0])]) == 0.5


@given(st.integers(1, 9), st.integers(1, 64), st.integers(0, 3))
def test_stretches_folded_one_by_one_make_the_fold_of_the_whole(stretches: int, last: int, doublings: int) -> None:
    tensor = torch.randn(stretches * 64 + last, generator=torch.Generator().manual_seed(last), dtype=torch.float64)
    parts = torch.cat([folded(part, 4) for part in torch.split(tensor, 64)])
    assert torch.allclose(folded(parts, 1 << doublings), folded(tensor, 4 << doublings))

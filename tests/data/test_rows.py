import multiprocessing
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from samestep.data.loading import _Handover
from samestep.data.row_order import RowOrder
from samestep.data.rows import DatasetRows, TensorRows, as_rows
from samestep.errors import JobRefused

# ---------------------------------------------------------------------------------- tensors, arrays

REQUESTS = [(0, [3, 1]), (0, [0]), (1, [4, 4, 2])]


def taken(rows: Any) -> list[Any]:
    return list(rows.take(iter(REQUESTS)))


def test_tensors_arrays_and_files_give_the_same_rows(tmp_path: Path) -> None:
    x, y = np.arange(20.0, dtype=np.float32).reshape(5, 4), np.arange(5)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for columns in [(torch.from_numpy(x), torch.from_numpy(y)), (x, y), (mapped, torch.from_numpy(y)), [mapped, y]]:
        rows = as_rows(columns, "data", 0, None, 0)
        assert rows.num_rows == 5
        for (_, wanted), batch in zip(REQUESTS, taken(rows), strict=True):
            assert isinstance(batch, tuple)
            assert torch.equal(batch[0], torch.from_numpy(x[wanted]))
            assert torch.equal(batch[1], torch.from_numpy(y[wanted]))
            assert batch[0].data_ptr() != x.ctypes.data


def test_a_mapping_gives_mappings_and_one_tensor_a_tuple_of_one() -> None:
    named = as_rows({"ids": torch.arange(5), "mask": np.ones(5, dtype=bool)}, "data", 0, None, 0)
    assert [set(batch) for batch in taken(named)] == [{"ids", "mask"}] * 3
    assert taken(named)[0]["ids"].tolist() == [3, 1]
    assert taken(named)[0]["mask"].dtype == torch.bool
    (alone,) = taken(as_rows(torch.arange(5), "data", 0, None, 0))[2]
    assert alone.tolist() == [4, 4, 2]


def test_columns_of_different_length_are_refused_with_both_lengths() -> None:
    with pytest.raises(JobRefused, match="columns of 5 and 4 rows"):
        TensorRows((torch.zeros(5), torch.zeros(4)))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield 0


@pytest.mark.parametrize("data", [Stream(), (i for i in range(3)), 7, None, {1, 2}])
def test_data_without_row_numbers_are_refused(data: Any) -> None:
    with pytest.raises(JobRefused, match=r"Job\.evaluate is a "):
        as_rows(data, "evaluate", 0, None, 0)


# ---------------------------------------------------------------------------------------- data sets


class Augmented(Dataset[Any]):
    """Rows that draw from every generator there is."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "noise": torch.rand(2), "python": random.random(), "numpy": np.random.rand()}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_augmentation_depends_neither_on_loader_workers_nor_on_who_loads(workers: int) -> None:
    def of(requests: list[tuple[int, list[int]]]) -> dict[tuple[int, int], tuple[float, ...]]:
        found = {}
        batches = DatasetRows(Augmented(), 5, None, workers).take(iter(requests))
        for (epoch, rows), batch in zip(requests, batches, strict=True):
            assert batch["row"].tolist() == rows
            for i, row in enumerate(rows):
                found[epoch, row] = (*batch["noise"][i].tolist(), float(batch["python"][i]), float(batch["numpy"][i]))
        return found

    together = of([(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3])])
    apart = of([(1, [3, 0]), (0, [2]), (0, [3, 0]), (1, [1]), (1, [2]), (0, [1])])
    assert together == apart
    for draw in range(4):  # another row, another epoch: other numbers, from each generator
        assert len({values[draw] for values in together.values()}) == 8


def test_another_seed_is_another_augmentation() -> None:
    noise = [next(DatasetRows(Augmented(), seed, None, 0).take(iter([(0, [0])])))["noise"] for seed in (0, 1)]
    assert not torch.equal(*noise)


def test_a_data_set_may_collate_its_own_way_and_be_a_list() -> None:
    samples = [(torch.ones(n), n) for n in range(1, 6)]

    def padded(batch: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True), torch.tensor(
            [n for _, n in batch]
        )

    rows = as_rows(samples, "data", 0, padded, 0)
    assert rows.num_rows == 5
    batch = taken(rows)[0]
    assert batch[0].shape == (2, 4)
    assert batch[1].tolist() == [4, 2]


def test_a_tensor_data_set_gives_what_its_tensors_give() -> None:
    x, y = torch.randn(5, 3), torch.arange(5)
    loaded, direct = taken(as_rows(TensorDataset(x, y), "data", 0, None, 0)), taken(TensorRows((x, y)))
    for a, b in zip(loaded, direct, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_requests_are_taken_one_after_the_other_without_end() -> None:
    """The rows of a step are asked for when they are needed: the requests may never end."""
    order = RowOrder(6, 4, seed=0)
    requests = ((epoch, rows.tolist()) for epoch, rows in order.batches(0))
    found = [batch["row"].tolist() for batch in islice(DatasetRows(Augmented(), 0, None, 2).take(requests), 5)]
    assert found == [rows.tolist() for _, rows in islice(order.batches(0), 5)]


class Broken(Augmented):
    def __getitem__(self, row: int) -> Any:
        raise KeyError(f"no row {row}")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_data_set_raises_arrives(workers: int) -> None:
    with pytest.raises(KeyError, match="no row 3"):
        taken(DatasetRows(Broken(), 0, None, workers))


class BreaksOff:
    """The queue from a loader worker that ends while it hands over a batch."""

    def __init__(self, end: Any) -> None:
        self.end = end

    def get(self, timeout: float | None = None) -> Any:
        self.end.send("end")
        raise ConnectionResetError


def test_a_loader_worker_that_breaks_off_has_ended_before_torch_looks() -> None:
    """torch 2.13 found it alive, made temporary files to count the open ones, and was interrupted in the midst."""
    theirs, ours = multiprocessing.Pipe()
    loader = multiprocessing.get_context("fork").Process(target=theirs.recv)
    loader.start()
    with pytest.raises(ConnectionResetError):
        _Handover(BreaksOff(ours), [loader]).get()
    assert loader.exitcode == 0


class Mapped(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> Any:
        return torch.full((3,), float(row)), row


@pytest.mark.parametrize("collate", [None, lambda samples: torch.stack([x for x, _ in samples])])
def test_what_loader_workers_share_never_had_a_name(collate: Any) -> None:
    """Killed between making a file in /dev/shm and removing it, a loader worker once left it behind."""
    rows = DatasetRows(Mapped(), 0, collate, 1)
    [batch] = rows.take(iter([(0, [2, 3])]))
    found = batch if collate else batch[0]
    assert found.tolist() == [[2.0] * 3, [3.0] * 3]
    start = found.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(address, 16) for address in line.split()[0].split("-"))
        if first <= start < last:
            assert "/memfd:batch" in line
            return
    pytest.fail("no mapping holds the batch")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.data.columns import MAX_OPEN, RecentlyUsed
from samestep.data.npy_files import Files
from samestep.data.row_order import RowOrder
from samestep.data.rows import TensorRows, as_rows
from samestep.errors import JobRefused, TrainingFailed
from samestep.job.job import Job
from samestep.job.training_data import shard_batches
from samestep.numerics.numerics import Numerics, num_shards_of, shard_rows
from samestep.plan.plan import Plan

DTYPES = ["float32", "float64", "int64", "uint8", "bool", "complex64", "float16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new folder for every example."""
    return lambda: tmp_path_factory.mktemp("files")


@given(st.data())
def test_any_cut_into_files_gives_the_rows_of_the_joined_array(folders: Callable[[], Path], data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    row_shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    num_rows = sum(lengths)
    dtype = data.draw(st.sampled_from(DTYPES))
    whole = np.random.default_rng(0).integers(0, 100, (num_rows, *row_shape)).astype(dtype)
    folder = folders()
    for i, part in enumerate(np.split(whole, np.cumsum(lengths)[:-1])):
        columns_first = data.draw(st.booleans())
        np.save(folder / f"{i}.npy", np.asfortranarray(part) if columns_first else part)
    files = Files(folder)
    assert (files.shape, files.dtype, files.ndim, len(files)) == (whole.shape, whole.dtype, whole.ndim, num_rows)
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=20)), dtype=np.int64)
    found = files[rows]
    assert found.flags.c_contiguous
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole[rows])
    np.testing.assert_array_equal(files[:], whole)
    np.testing.assert_array_equal(files[num_rows - 1], whole[-1])
    (batch,) = as_rows(files, "data", 0, None, 0).take(iter([(0, torch.from_numpy(rows))]))
    assert torch.equal(batch[0], torch.from_numpy(whole[rows]))


@pytest.mark.parametrize("rows", [[5], [-1], [0, 7], [0.5], [[1]], np.array([True])])
def test_rows_that_there_are_not_are_refused(tmp_path: Path, rows: Any) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    with pytest.raises(IndexError, match="rows"):
        Files(tmp_path)[rows]


def test_files_are_meant_by_a_folder_a_pattern_or_a_name_and_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [("b", 2), ("a", 1), ("c", 3), (".hidden", 9)]:
        np.save(tmp_path / f"{name}.npy", np.full(2, value))
    (tmp_path / "notes.txt").write_text("not an array")
    (tmp_path / "d.npy").mkdir()
    (tmp_path / "d.npy" / "e.npy").write_bytes((tmp_path / "a.npy").read_bytes())
    monkeypatch.chdir(tmp_path)
    for files, values in [
        ("[a-c].npy", [1, 2, 3]),
        (tmp_path / "[ac].npy", [1, 3]),
        ("b.npy", [2]),
        ("**/[abe].npy", [1, 2, 1]),
        (f"{tmp_path}/d.npy", [1]),
    ]:
        assert Files(files)[:].tolist() == [value for value in values for _ in range(2)]


def test_only_headers_are_read_and_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((2, 2), i))
    opened: list[str] = []

    def noted(path: Path, *arguments: Any) -> Any:
        opened.append(path.stem)
        return real(path, *arguments)

    real = np.memmap
    monkeypatch.setattr("samestep.data.npy_files.np.memmap", noted)
    files = Files(tmp_path)
    assert opened == []
    for _ in range(3):
        files[np.array([0, 5, 1])]
    assert opened == ["0", "2"]


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    for i in range(MAX_OPEN + 10):
        np.save(tmp_path / f"{i:04}.npy", np.array([i]))
    files = Files(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        assert files[:].tolist() == list(range(MAX_OPEN + 10))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MAX_OPEN


def save(path: Path, array: Any, **options: Any) -> None:
    np.save(path, array, **options)


def truncated(path: Path) -> None:
    save(path, np.zeros((100, 4)))
    path.write_bytes(path.read_bytes()[:1000])


FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "another shape": (lambda path: save(path, np.zeros((3, 5))), ["a.npy", "(4,)", "b.npy", "(5,)", "pattern"]),
    "another dtype": (
        lambda path: save(path, np.zeros((3, 4), np.float32)),
        ["a.npy", "float64", "b.npy", "float32", "same"],
    ),
    "truncated": (truncated, ["b.npy", "no whole .npy file", "1000 bytes", "3328"]),
    "empty": (lambda path: path.write_bytes(b""), ["b.npy", "no whole .npy file", "write it again"]),
    "text": (lambda path: path.write_text("1, 2, 3, 4, 5"), ["b.npy", "no whole .npy file", "magic"]),
    "a header of rubbish": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00abcd"), ["b.npy", "no whole"]),
    "a later version": (lambda path: path.write_bytes(b"\x93NUMPY\x03\x00\x04\x00abcd"), ["b.npy", "version is 3.0"]),
    "Python objects": (
        lambda path: save(path, np.array([{}, 1, 2], dtype=object), allow_pickle=True),
        ["b.npy", "object", "no tensor"],
    ),
    "text in an array": (lambda path: save(path, np.array(["a", "b"])), ["b.npy", "<U1", "make numbers"]),
    "another machine's bytes": (lambda path: save(path, np.zeros((3, 4), ">f8")), ["b.npy", ">f8", "byte order"]),
    "a number": (lambda path: save(path, np.float64(3)), ["b.npy", "without dimensions"]),
    "not ours to read": (lambda path: path.symlink_to("nowhere"), ["b.npy", "No such file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, fault: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    make, words = FAULTS[fault]
    make(tmp_path / "b.npy")
    with pytest.raises(JobRefused) as caught:
        Files(tmp_path)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} missing in: {caught.value}"


def test_no_files_are_refused_with_the_place(tmp_path: Path) -> None:
    for files, words in [
        (tmp_path / "nowhere", "there is no file or folder"),
        (tmp_path / "x*.npy", r"no file fits it as a pattern"),
        (tmp_path, r"holds no \.npy file"),
        (["a.npy"], "given a list"),
        (3, "given a int"),
    ]:
        with pytest.raises(JobRefused, match=words):
            Files(files)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["gone", "truncated", "longer", "other numbers"])
def test_a_file_that_changes_later_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 4)))
    files = Files(tmp_path)
    match change:
        case "gone":
            path.unlink()
        case "truncated":
            truncated(path)
        case "longer":
            np.save(path, np.zeros((101, 4)))
        case "other numbers":
            np.save(path, np.zeros((100, 4), dtype=np.int64))
    with pytest.raises(TrainingFailed, match=r"a\.npy (was whole|had float64 \(100, 4\)) when the job was made"):
        files[np.array([3])]


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    with pytest.raises(JobRefused, match="columns of 3 and 5 rows"):
        as_rows((Files(tmp_path), torch.zeros(5)), "data", 0, None, 0)


# --------------------------------------------------------------------------------- who reads what


class Noted(Files):
    """Notes the rows that are read."""

    def __init__(self, files: Path) -> None:
        super().__init__(files)
        self.read: list[int] = []

    def __getitem__(self, key: Any) -> Any:
        self.read += key.tolist()
        return super().__getitem__(key)


@given(st.integers(20, 60), st.integers(4, 20), st.integers(1, 6), st.integers(0, 9), st.data())
def test_a_worker_reads_the_rows_of_its_shards_and_no_others(
    folders: Callable[[], Path], num_rows: int, batch_size: int, shards: int, first: int, data: Any
) -> None:
    cut = data.draw(st.integers(0, shards))
    folder = folders()
    np.save(folder / "a.npy", np.arange(num_rows))
    plan = Plan(Numerics(seed=3, shards=shards), (cut, shards - cut))
    job: Any = Job(model=None, optimizer=None, data=None, batch_size=batch_size, seed=3)  # type: ignore[arg-type]
    order = RowOrder(num_rows, batch_size, seed=3)
    _, batch = next(order.batches(first))
    parts = shard_rows(len(batch), num_shards := num_shards_of(len(batch), shards))
    for rank in range(2):
        column = Noted(folder)
        own = plan.touched(rank, num_shards)
        batches = shard_batches(job, plan, rank, TensorRows((column,)), first)
        values = [next(batches)[0].tolist() for _ in own]
        assert values == [batch[parts[shard].start : parts[shard].stop].tolist() for shard in own]
        assert column.read == [row for rows in values for row in rows]


@pytest.mark.parametrize("loaders", [1, 2])
def test_loader_workers_give_the_same_batches_without_end(tmp_path: Path, loaders: int) -> None:
    np.save(tmp_path / "a.npy", np.arange(50).reshape(10, 5))
    columns = {"x": Files(tmp_path), "y": torch.arange(10)}
    requests = [(epoch, rows) for (epoch, rows), _ in zip(RowOrder(10, 4, seed=0).batches(0), range(7), strict=False)]
    found = as_rows(columns, "data", 0, None, loaders).take(RowOrder(10, 4, seed=0).batches(0))
    for (_, rows), batch in zip(requests, found, strict=False):
        assert torch.equal(batch["y"], rows)
        assert torch.equal(batch["x"][:, 0], 5 * rows)


def test_rows_in_memory_need_no_loader_workers() -> None:
    """They would come later, and cost processes."""
    batches = as_rows(torch.arange(5), "data", 0, None, 2).take(iter([(0, [1, 2])]))
    assert "_WholeBatches" not in repr(next(batches))
    column: Tensor = torch.arange(5)
    assert TensorRows((column,), num_loader_workers=2)._num_loader_workers == 0
    assert TensorRows((column.numpy(),), num_loader_workers=2)._num_loader_workers == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40), st.integers(0, 20))
def test_what_is_kept_stays_within_the_budget(calls: list[tuple[int, int]], budget: int) -> None:
    kept: RecentlyUsed[int, int] = RecentlyUsed(budget, lambda cost: cost)
    for key, cost in calls:
        made: list[int] = []
        value = kept.get(key, lambda cost=cost, made=made: made.append(cost) or cost)  # type: ignore[misc]
        assert not made or value == cost
        assert sum(kept._values.values()) == kept._spent <= budget

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.data import parquet_headers
from samestep.data.parquet import Parquet
from samestep.data.rows import as_rows
from samestep.errors import JobRefused, TrainingFailed

DTYPES = ["float32", "float64", "float16", "int64", "int8", "uint8", "bool"]


@contextmanager
def read_here() -> Iterator[None]:
    """Without the process of its own, which would be started for every example."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("samestep.data.parquet._ask_process", parquet_headers.answer)
        yield


@pytest.fixture
def in_process() -> Iterator[None]:
    with read_here():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new folder for every example."""
    return lambda: tmp_path_factory.mktemp("parquet")


def as_arrow(array: np.ndarray[Any, Any]) -> pa.Array:
    """Rows of any shape as fixed-size lists."""
    found = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def write(path: Path, group: int = 1000, **columns: Any) -> None:
    arrays = {name: as_arrow(value) if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    pq.write_table(pa.table(arrays), path, row_group_size=group)


@given(st.data())
@read_here()
def test_any_files_and_row_groups_give_the_rows_of_the_joined_columns(folders: Callable[[], Path], data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any))
    row_shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    num_rows = sum(lengths)
    x = np.random.default_rng(0).integers(0, 100, (num_rows, *row_shape)).astype(data.draw(st.sampled_from(DTYPES)))
    y = np.arange(num_rows)
    folder = folders()
    cuts = np.cumsum(lengths)[:-1]
    for i, (a, b) in enumerate(zip(np.split(x, cuts), np.split(y, cuts), strict=True)):
        write(folder / f"{i}.parquet", data.draw(st.integers(1, 5)), x=a, y=b)
    table = Parquet(folder, cache_bytes=data.draw(st.sampled_from([0, 100, 10**6])))
    assert list(table) == ["x", "y"]
    assert (table["x"].shape, table["x"].dtype) == (x.shape, x.dtype)
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=20)), dtype=np.int64)
    (batch,) = as_rows(table, "data", 0, None, 0).take(iter([(0, torch.from_numpy(rows))]))
    for name, whole in (("x", x), ("y", y)):
        assert torch.equal(batch[name], torch.from_numpy(whole[rows]))
        np.testing.assert_array_equal(table[name][:], whole)


def test_only_the_row_groups_and_columns_that_are_needed_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(40)
    write(tmp_path / "a.parquet", 10, x=rows, y=rows, z=rows)
    decoded: list[tuple[int, list[str]]] = []
    real = pq.ParquetFile.read_row_group

    def noted(self: Any, group: int, columns: list[str], **options: Any) -> Any:
        decoded.append((group, columns))
        return real(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    table = Parquet(tmp_path, columns=["x", "y"], cache_bytes=3 * 80)
    assert list(table) == ["x", "y"]
    assert decoded == []
    assert table["x"][np.array([31, 5, 38])].tolist() == [31, 5, 38]
    assert table["y"][np.array([5])].tolist() == [5]
    assert decoded == [(0, ["x"]), (3, ["x"]), (0, ["y"])]
    assert table["x"][np.array([9])].tolist() == [9]  # kept: three row groups fit
    assert len(decoded) == 3
    assert table["x"][np.array([10])].tolist() == [10]
    assert table["x"][np.array([30])].tolist() == [30]  # had to go
    assert [group for group, _ in decoded] == [0, 3, 0, 1, 3]


def test_what_stays_in_memory_is_bounded(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 100, x=np.zeros((5000, 16)))
    table = Parquet(tmp_path, cache_bytes=40_000)
    before = pa.total_allocated_bytes()
    for row in range(0, 5000, 50):
        table["x"][np.array([row])]
        assert pa.total_allocated_bytes() - before <= 40_000 + 2 * 100 * 16 * 8


def strings(path: Path) -> None:
    write(path, x=np.zeros(3), name=pa.array(["a", "b", "c"]))


FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "text": (strings, ["b.parquet", "'name'", "string", "no tensor", "columns="]),
    "lists of any length": (
        lambda path: write(path, x=pa.array([[1.0], [2.0, 3.0]])),
        ["b.parquet", "'x'", "list", "fixed-size"],
    ),
    "dates": (lambda path: write(path, x=pa.array([1, 2], pa.timestamp("s"))), ["b.parquet", "timestamp", "numbers"]),
    "nulls": (lambda path: write(path, x=pa.array([1.0, None])), ["b.parquet", "'x'", "nulls", "fill them in"]),
    "another shape": (
        lambda path: write(path, x=np.zeros((3, 2))),
        ["a.parquet", "float64 ()", "b.parquet", "float64 (2,)", "pattern"],
    ),
    "another dtype": (
        lambda path: write(path, x=np.zeros(3, np.float32)),
        ["a.parquet", "float64 ()", "b.parquet", "float32 ()"],
    ),
    "other columns": (lambda path: write(path, y=np.zeros(3)), ["'x' of", "a.parquet", "b.parquet", "not there"]),
    "no Parquet": (lambda path: path.write_text("x,y\n1,2\n" * 10), ["b.parquet", "cannot be read", "Parquet"]),
    "empty": (lambda path: path.write_bytes(b""), ["b.parquet", "cannot be read"]),
    "cut off": (lambda path: path.write_bytes((path.parent / "a.parquet").read_bytes()[:-9]), ["b.parquet"]),
    "gone": (lambda path: path.symlink_to("nowhere"), ["b.parquet", "cannot be read"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("in_process")
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, fault: str) -> None:
    write(tmp_path / "a.parquet", x=np.zeros(3))
    make, words = FAULTS[fault]
    make(tmp_path / "b.parquet")
    with pytest.raises(JobRefused) as caught:
        Parquet(tmp_path)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} missing in: {caught.value}"


def test_the_process_that_reads_headers_says_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=np.zeros((3, 2), np.float32))
    assert Parquet(tmp_path)["x"].shape == (3, 2)
    strings(tmp_path / "b.parquet")
    with pytest.raises(JobRefused, match=r"b\.parquet cannot be read: column 'name' is string"):
        Parquet(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_other_bad_arguments_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=np.zeros(3))
    for arguments, words in [
        ({"files": tmp_path / "*.pq"}, "no file fits it as a pattern"),
        ({"files": tmp_path, "columns": ["z"]}, "no column 'z'; it has x"),
        ({"files": tmp_path, "columns": "x"}, "list of names"),
        ({"files": tmp_path, "cache_bytes": -1}, "cache_bytes=-1"),
    ]:
        with pytest.raises(JobRefused, match=words):
            Parquet(**arguments)
    with pytest.raises(JobRefused, match="no column 'y'; it has x"):
        Parquet(tmp_path)["y"]


def test_without_pyarrow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else real(name))
    with pytest.raises(JobRefused, match=r"pip install samestep\[parquet\]"):
        Parquet(tmp_path)


def nulls_inside(path: Path) -> None:
    write(path, x=pa.array([[1.0, None]] * 30, pa.list_(pa.float64(), 2)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "Parquet"),
        (lambda path: write(path, x=np.zeros((30, 2), np.float32)), "float32 now and was float64"),
        (lambda path: write(path, x=np.zeros((29, 2))), "size 58"),
        (lambda path: write(path, y=np.zeros((30, 2))), '"x" does not exist'),
        (nulls_inside, "nulls"),
    ],
    ids=["gone", "cut off", "another dtype", "fewer rows", "another column", "nulls"],
)
@pytest.mark.usefixtures("in_process")
def test_a_file_that_changes_later_is_named(tmp_path: Path, change: Callable[[Path], Any], words: str) -> None:
    path = tmp_path / "a.parquet"
    write(path, x=np.zeros((30, 2)))
    table = Parquet(tmp_path)
    change(path)
    with pytest.raises(TrainingFailed, match=rf"column 'x' of row group 0 of .*a\.parquet cannot be read: .*{words}"):
        table["x"][np.array([3])]

"""The ledger: every row of the data set is used exactly once per epoch.

Each worker books the rows that it has taken. At an epoch's end two numbers per worker are enough: how many rows, and
the sum of their keyed 64-bit hashes. A row that is missing and another one that came twice change the sum, but for a
chance of about 2^-64. Only when the numbers are wrong do workers tell which rows they had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samestep.numerics.mixing import mixed_bits

Rows = NDArray[np.int64]
AT_ONCE = 1 << 18  # rows


@dataclass(frozen=True)
class Balance:
    """count: rows. total: the sum of their hashes mod 2^64."""

    count: int = 0
    total: int = 0

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(self.count + other.count, (self.total + other.total) % 2**64)

    def __sub__(self, other: "Balance") -> "Balance":
        return Balance(self.count - other.count, (self.total - other.total) % 2**64)


def balance(rows: Rows, key: int) -> Balance:
    """In parts, since hashing takes several times the memory of its rows."""
    parts = (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))
    return Balance(len(rows), sum(int(mixed_bits(part, key).sum(dtype=np.uint64)) for part in parts) % 2**64)


def demanded(num_rows: int, left_out: Rows, key: int) -> Balance:
    """What all workers together must have. left_out: rows that an epoch goes without, because the last batch is dropped
    or because the run began in its middle."""
    found = Balance()
    for start in range(0, num_rows, AT_ONCE):
        found += balance(np.arange(start, min(start + AT_ONCE, num_rows)), key)
    return found - balance(left_out, key)


@dataclass
class Ledger:
    """One worker's book of one epoch. Rows are kept as they came, which costs no copy, and summed in the end: a few at
    a time they would take as long as some of a step's actions."""

    key: int
    taken: list[Rows] = field(default_factory=list)

    def note(self, rows: Rows) -> None:
        self.taken.append(rows)

    @property
    def own(self) -> Balance:
        return balance(self._all(), self.key)

    def counts(self, num_rows: int) -> NDArray[np.uint8]:
        """How often this worker took each row, 255 for more."""
        return np.minimum(np.bincount(self._all(), minlength=num_rows), 255).astype(np.uint8)

    def _all(self) -> Rows:
        return np.concatenate([*self.taken, np.zeros(0, np.int64)])


@dataclass(frozen=True)
class Mistake:
    """missing: rows that nobody took. again: rows that came more than once, and who had them."""

    missing: tuple[int, ...]
    again: tuple[tuple[int, tuple[int, ...]], ...]
    strange: tuple[tuple[int, tuple[int, ...]], ...]  # rows that the epoch goes without, and who had them


def mistake(counts: Sequence[NDArray[np.uint8]], left_out: Rows) -> Mistake:
    """counts: of each worker, how often it took each row."""
    total = np.sum([count.astype(np.int64) for count in counts], axis=0)
    wanted = np.ones(len(total), dtype=np.int64)
    wanted[left_out] = 0

    def by(rows: Rows) -> tuple[tuple[int, tuple[int, ...]], ...]:
        return tuple((int(r), tuple(w for w, count in enumerate(counts) for _ in range(count[r]))) for r in rows)

    missing = tuple(map(int, np.flatnonzero((wanted == 1) & (total == 0))))
    again = by(np.flatnonzero((wanted == 1) & (total > 1)))
    return Mistake(missing, again, by(np.flatnonzero((wanted == 0) & (total > 0))))


FEW = 5


def text_of(found: Mistake, epoch: int, num_rows: int) -> str:
    """The sentence for it."""
    parts = []
    if found.again:
        few = ", ".join(f"{row} (workers {', '.join(map(str, who))})" for row, who in found.again[:FEW])
        parts.append(f"{len(found.again)} rows came more than once: {few}{_more(found.again)}")
    if found.missing:
        parts.append(
            f"{len(found.missing)} rows were not used: {', '.join(map(str, found.missing[:FEW]))}{_more(found.missing)}"
        )
    if found.strange:
        few = ", ".join(f"{row} (workers {', '.join(map(str, who))})" for row, who in found.strange[:FEW])
        parts.append(f"{len(found.strange)} rows came that this run's part of the epoch is without: {few}")
    return (
        f"epoch {epoch} did not use each of the {num_rows} rows exactly once: {'; '.join(parts)}. "
        "Look at what decides on the order of rows and at what these workers do with it"
    )


def _more(rows: Sequence[object]) -> str:
    return f" and {len(rows) - FEW} more" if len(rows) > FEW else ""

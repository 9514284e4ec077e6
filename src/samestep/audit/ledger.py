"""The ledger: every row of the data set is used exactly once per epoch.

Each worker books the rows that it has taken. At an epoch's end two numbers per worker are enough: the number of rows,
and the sum of their keyed 64-bit hashes. A row that is missing and another one that came twice change the sum, except
with a chance of about 2^-64. Only when the numbers are wrong do workers exchange which rows they had.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samestep.data.row_order import RowNumbers, RowOrder
from samestep.errors import Disagreement
from samestep.numerics.mixing import mixed_bits
from samestep.numerics.numerics import key
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.step import StepResult
from samestep.transport.transport import Transport

Rows = NDArray[np.int64]
AT_ONCE = 1 << 18  # rows
RECORD = struct.Struct("<QQQ")  # rows, the sum of their hashes, rows left out
FEW = 5  # rows that an error names


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
    """The balance of `rows`, summed in parts, since hashing takes several times the memory of its rows."""
    parts = (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))
    return Balance(len(rows), sum(int(mixed_bits(part, key).sum(dtype=np.uint64)) for part in parts) % 2**64)


def demanded(num_rows: int, left_out: Rows, key: int) -> Balance:
    """The balance that all workers together must have.

    left_out: rows that an epoch goes without, because the last batch is dropped or the run began in its middle.
    """
    found = Balance()
    for start in range(0, num_rows, AT_ONCE):
        found += balance(np.arange(start, min(start + AT_ONCE, num_rows)), key)
    return found - balance(left_out, key)


@dataclass
class Ledger:
    """One worker's book of one epoch.

    Rows are kept as they came, which costs no copy, and summed at the end: a few at a time they would take as long as
    some of a step's actions.
    """

    key: int
    taken: list[Rows] = field(default_factory=list)
    dropped: int = 0  # rows of these that a collate function has left out

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
    """Rows that were used wrongly, with the workers that had them."""

    missing: tuple[int, ...]  # rows that nobody took
    again: tuple[tuple[int, tuple[int, ...]], ...]  # rows that came more than once
    strange: tuple[tuple[int, tuple[int, ...]], ...]  # rows that the epoch goes without


def mistake(counts: Sequence[NDArray[np.uint8]], left_out: Rows) -> Mistake:
    """The rows used wrongly. counts: per worker, how often it took each row. left_out: rows of no batch."""
    total = np.sum([count.astype(np.int64) for count in counts], axis=0)
    wanted = np.ones(len(total), dtype=np.int64)
    wanted[left_out] = 0

    def by(rows: Rows) -> tuple[tuple[int, tuple[int, ...]], ...]:
        return tuple((int(r), tuple(w for w, count in enumerate(counts) for _ in range(count[r]))) for r in rows)

    missing = tuple(map(int, np.flatnonzero((wanted == 1) & (total == 0))))
    again = by(np.flatnonzero((wanted == 1) & (total > 1)))
    return Mistake(missing, again, by(np.flatnonzero((wanted == 0) & (total > 0))))


def text_of(found: Mistake, epoch: int, num_rows: int) -> str:
    """The error's text."""
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


class Bookkeeping(Attendant):
    """One worker's ledgers, epoch by epoch. At an epoch's end all ledgers are compared.

    step: optimizer steps done before the run.
    """

    def __init__(self, order: RowOrder, transport: Transport, step: int) -> None:
        self.order, self.transport = order, transport
        self.count = 0  # epochs that are proven
        self.dropped = 0  # rows in them that a collate function has left out
        self._key = key(order.seed, "ledger")
        self._ledger = Ledger(self._key)
        self._first_step = step
        self._other_rows = False  # whether the batch of the step under way is not the job's own

    def note(self, rows: RowNumbers, kept: int | None, is_own: bool) -> None:
        """Book rows that this worker takes for the step under way, if it computes them from the first layer on."""
        if is_own:
            self._ledger.note(np.asarray(rows.numpy() if isinstance(rows, Tensor) else rows))
            self._ledger.dropped += 0 if kept is None else len(rows) - kept

    def expect_other_rows(self) -> None:
        self._other_rows = True

    def after_step(self, result: StepResult, rows: int) -> None:
        """At an epoch's end, compare all ledgers. Raises Disagreement."""
        other_rows, self._other_rows = self._other_rows, False
        epoch, batch = divmod(result.number + 1, self.order.batches_per_epoch)
        if batch == 0 and not other_rows:
            self._settle(epoch - 1)
            self._ledger = Ledger(self._key)

    def report(self) -> dict[str, Any]:
        return {"epochs_proven": self.count, "rows_dropped": self.dropped}

    def _settle(self, epoch: int) -> None:
        own, left_out = self._ledger.own, self._left_out(epoch)
        total = Balance()
        for text in self.transport.exchange(RECORD.pack(own.count, own.total, self._ledger.dropped)):
            count, hashes, dropped = RECORD.unpack(text)
            total += Balance(count, hashes)
            self.dropped += dropped
        if total != demanded(self.order.num_rows, left_out, self._key):
            taken = self.transport.exchange(self._ledger.counts(self.order.num_rows).tobytes())
            counts = [np.frombuffer(text, np.uint8) for text in taken]
            raise Disagreement(text_of(mistake(counts, left_out), epoch, self.order.num_rows))
        self.count += 1

    def _left_out(self, epoch: int) -> Rows:
        """The rows that an epoch goes without: its last, dropped batch, and those before the run's first step."""
        done, batch = divmod(self._first_step, self.order.batches_per_epoch)
        before = batch * self.order.batch_size if done == epoch else 0
        used = min(self.order.batches_per_epoch * self.order.batch_size, self.order.num_rows)
        if before == 0 and used == self.order.num_rows:
            return np.zeros(0, np.int64)
        rows = self.order.permutation(epoch).numpy()
        return np.concatenate([rows[:before], rows[used:]])

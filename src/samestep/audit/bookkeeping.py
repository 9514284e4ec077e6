"""One worker's part in the ledger: it books the rows that it takes; at an epoch's end all books are held together."""

import numpy as np
from torch import Tensor

from samestep.audit.ledger import (
    Balance,
    Ledger,
    Rows,
    demanded,
    mistake,
    text_of,
)
from samestep.data.row_order import RowNumbers, RowOrder
from samestep.errors import Disagreement
from samestep.numerics.numerics import key
from samestep.transport.transport import Transport

WORD = 8


class Bookkeeping:
    """Of the epochs of a run that begins after `step` optimizer steps."""

    def __init__(self, order: RowOrder, transport: Transport, step: int) -> None:
        self.order, self.transport = order, transport
        self.count = 0  # epochs that are proven
        self._key = key(order.seed, "ledger")
        self._ledger = Ledger(self._key)
        self._first_step = step

    def note(self, rows: RowNumbers) -> None:
        """Rows that this worker takes for the step under way."""
        self._ledger.note(np.asarray(rows.numpy() if isinstance(rows, Tensor) else rows))

    def after(self, step: int) -> None:
        """Call it when so many optimizer steps are done. At an epoch's end all workers meet. Raises Disagreement."""
        epoch, batch = divmod(step, self.order.batches_per_epoch)
        if batch == 0:
            self._settle(epoch - 1)
            self._ledger = Ledger(self._key)

    def _settle(self, epoch: int) -> None:
        own, left_out = self._ledger.own, self._left_out(epoch)
        record = own.count.to_bytes(WORD, "little") + own.total.to_bytes(WORD, "little")
        total = Balance()
        for text in self.transport.exchange(record):
            total += Balance(int.from_bytes(text[:WORD], "little"), int.from_bytes(text[WORD:], "little"))
        if total != demanded(self.order.num_rows, left_out, self._key):
            told = self.transport.exchange(self._ledger.counts(self.order.num_rows).tobytes())
            counts = [np.frombuffer(text, np.uint8) for text in told]
            raise Disagreement(text_of(mistake(counts, left_out), epoch, self.order.num_rows))
        self.count += 1

    def _left_out(self, epoch: int) -> Rows:
        """The rows of the last, dropped batch, and those of an epoch in whose middle the run began."""
        done, batch = divmod(self._first_step, self.order.batches_per_epoch)
        before = batch * self.order.batch_size if done == epoch else 0
        used = min(self.order.batches_per_epoch * self.order.batch_size, self.order.num_rows)
        if before == 0 and used == self.order.num_rows:
            return np.zeros(0, np.int64)
        rows = self.order.permutation(epoch).numpy()
        return np.concatenate([rows[:before], rows[used:]])

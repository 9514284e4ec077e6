"""Rows that a collate function of the user's own leaves out: a shard has the rows that are there."""

from samestep.audit.ledger import Bookkeeping
from samestep.data.row_order import RowNumbers
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import StepState
from samestep.schedule import actions


class KeptRows(Attendant):
    """Counts the rows of every batch that one worker loads, and gives each shard its own number, its weight."""

    def __init__(self, ledger: Bookkeeping | None) -> None:
        self._ledger = ledger
        self._kept: list[int | None] = []  # of the batches of the step under way, in their order

    def note(self, rows: RowNumbers, kept: int | None, is_own: bool) -> None:
        self._kept.append(kept)
        if self._ledger is not None:
            self._ledger.note(rows, kept, is_own)

    def after_action(self, action: actions.Action, state: StepState) -> None:
        if type(action) is not actions.Load:
            return
        for shard, kept in zip(state.batches, self._kept, strict=False):  # none were taken for a batch from elsewhere
            if kept is not None and kept != state.rows[shard]:
                state.rows[shard] = state.kept[shard] = kept
        self._kept.clear()

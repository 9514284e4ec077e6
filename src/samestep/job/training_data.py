"""Training data of a job: its rows, and the batches of one worker's shards."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from samestep.data.ordered import OrderedRows
from samestep.data.row_order import RowNumbers
from samestep.data.rows import DatasetRows, Rows, as_rows
from samestep.errors import JobRefused
from samestep.job.job import Job
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.plan.plan import Plan

Note = Callable[[RowNumbers, int | None, bool], None]
"""Called with the rows of a batch taken, how many of them a collate function of the user's has kept, if there is one,
and whether the worker computes them from the first layer on."""


def training_rows(job: Job) -> Rows:
    return as_rows(job.data, "data", job.seed, job.collate_fn, job.num_loader_workers)


def first_shard(job: Job, shards: int) -> Any:
    """The batch of the first step's first shard, with which the forward is recorded."""
    return next(first_shards(job, shards, 1))


def first_shards(job: Job, shards: int, most: int) -> Iterator[Any]:
    """The batches of the first `most` shards of training, or of all there are; each is loaded when it is asked for."""
    if job.data is None:
        raise JobRefused("a plan with stages or slices looks at a batch before the first step: give Job.data")
    rows = training_rows(dataclasses.replace(job, num_loader_workers=0))
    order = job.row_order(rows.num_rows)
    asked = [
        (epoch, batch[part.start : part.stop])
        for epoch, batch in itertools.islice(order.batches(0), min(most, job.num_steps(order)))
        for part in shard_rows(len(batch), num_shards_of(len(batch), shards))
    ]
    return iter(rows.take(iter(asked[:most])))


def shard_batches(job: Job, plan: Plan, rank: int, rows: Rows, first_step: int, note: Note | None = None) -> Any:
    """An endless iterator over the batches of worker `rank`'s shards, in the order in which it computes them.

    Empty if the worker never has a shard: a loader that works ahead would search for its first one for ever.
    note: called whenever the batch of a shard is taken.
    """
    if not plan.touched(rank, num_shards_of(job.batch_size, plan.numerics.shards)):
        return iter(())

    if isinstance(rows, DatasetRows | OrderedRows):
        rows.is_tried = plan.workers > 1 or job.num_loader_workers > 0

    def requests() -> Any:
        for epoch, batch in job.row_order(rows.num_rows).batches(first_step):
            num_shards = num_shards_of(len(batch), plan.numerics.shards)
            parts = shard_rows(len(batch), num_shards)
            for shard in plan.touched(rank, num_shards):
                rows_of_shard = batch[parts[shard].start : parts[shard].stop]
                asked.append((rows_of_shard, shard in plan.shards_of(rank, num_shards)))
                yield epoch, rows_of_shard

    def noted() -> Any:
        for kept, found in rows.take_counted(requests()):
            taken, is_first = asked.popleft()
            if note is not None:
                note(taken, kept, is_first)
            yield found

    asked: deque[tuple[RowNumbers, bool]] = deque()  # a loader may look ahead
    return noted()

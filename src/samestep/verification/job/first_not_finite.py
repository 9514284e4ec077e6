"""The first number of a run that is not finite, before a reduction spreads it to all workers.

After the gradients are combined a NaN is on every worker, and the rows that made it are unknown
[Megatron-LM d668077]. The values noted before the reduction name them.
"""

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import KINDS, Record, not_finite_values

LOOKED_AT = ("loss", "local gradient", "gradient", "optimizer state", "parameter", "buffer", "evaluation")
"""Kinds in which a NaN or an infinity is never meant; a layer's output may have one, in a mask."""


def not_finite(run: Record) -> Finding | None:
    """The earliest value in the order of a step, with its worker and shard."""
    for step in run.steps():
        bad = not_finite_values(run.of(step), LOOKED_AT)
        if bad:
            key, noted = min(bad, key=lambda one: KINDS.index(one[0].kind))
            why = "everything before it is finite" if len(bad) == 1 else f"the first of {len(bad)} of this step"
            shard = None if key.shard < 0 else key.shard
            return Finding(Cause.NOT_FINITE, step, key.kind, key.name, why, shard, noted.rank)
    return None

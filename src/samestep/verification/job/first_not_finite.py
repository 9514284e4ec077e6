"""The first number of a run that is not finite, before a reduction spreads it to everybody.

A NaN that is looked for after the gradients are combined is on every worker, and nobody knows whose rows made it
[Megatron-LM d668077]. What is noted before tells.
"""

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import KINDS, Record

LOOKED_AT = ("loss", "local gradient", "gradient", "optimizer state", "parameter", "buffer", "evaluation")
"""Where a NaN or an infinity is never meant; a layer's output may well have one, in a mask."""


def not_finite(run: Record) -> Finding | None:
    for step in run.steps():
        bad = [
            (key, noted)
            for key, each in run.of(step).items()
            for noted in each
            if key.kind in LOOKED_AT and not bool(noted.values.isfinite().all())
        ]
        if bad:
            key, noted = min(bad, key=lambda one: KINDS.index(one[0].kind))
            return Finding(
                cause=Cause.NOT_FINITE,
                step=step,
                kind=key.kind,
                name=key.name,
                why="everything before it is finite" if len(bad) == 1 else f"the first of {len(bad)} of this step",
                shard=None if key.shard < 0 else key.shard,
                worker=noted.rank,
            )
    return None

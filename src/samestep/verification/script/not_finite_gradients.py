"""A NaN or an infinity among the gradients, and its worker before a reduction gave it to all.

worker 0    l_0 = 1.5  ┐
                       ├  c_0 = c_1 = NaN: from here on the rows that made it are unknown
worker 1    l_1 = NaN  ┘
"""

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import Key, Noted, Step, not_finite_values
from samestep.verification.script.step_records import StepRecords


def judge_finite(view: StepRecords) -> Finding | None:
    """The first value that is not finite, whether or not one process has one as well; with the same rows, it has."""
    local = first_not_finite(view.workers, "local gradient")
    if local is not None:
        key, noted = local
        losses = view.workers.get(Key("loss", "loss", key.shard), ())
        loss = "".join(f", from a loss of {float(one.values[0]):.4g}" for one in losses if one.rank == noted.rank)
        why = f"the gradient of its own rows has {value_name(noted)}{loss}{on_one_process(view, key.kind)}"
        return Finding(Cause.NOT_FINITE, view.step, key.kind, key.name, why, key.shard, noted.rank)
    has_local = any(key.kind == "local gradient" for key in view.workers)
    bad_loss = None if has_local else first_not_finite(view.workers, "loss")
    if bad_loss is not None:
        key, noted = bad_loss
        why = f"the loss is {float(noted.values[0]):g}{on_one_process(view, key.kind)}"
        return Finding(Cause.NOT_FINITE, view.step, key.kind, key.name, why, key.shard, noted.rank)
    combined = first_not_finite(view.workers, "gradient")
    if combined is None:
        return None
    key, noted = combined
    before = "each worker's own is finite" if has_local else "whose rows made it is not known"
    why = f"the optimizer gets {value_name(noted)}; {before}{on_one_process(view, key.kind)}"
    return Finding(Cause.NOT_FINITE, view.step, key.kind, key.name, why)


def first_not_finite(run: Step, kind: str) -> tuple[Key, Noted] | None:
    """The value of the earliest micro-batch, there of the first worker, there the one noted first."""
    return min(not_finite_values(run, [kind]), key=lambda one: (one[0].shard, one[1].rank), default=None)


def value_name(noted: Noted) -> str:
    return "a NaN" if bool(noted.values.isnan().any()) else "an infinity"


def on_one_process(view: StepRecords, kind: str) -> str:
    return "; one process has one too" if first_not_finite(view.reference, kind) else "; one process has none"

"""One shard that a checkpoint records: a resumed run computes it again, and has to find the same loss and gradients.

It is the first shard of the job's data, from the state of the checkpoint, by the uncut model in worker 0: whatever
changes the loss, a layer, a dropout rate or the data changes it, whoever computes what in the run itself.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from samestep.job.job import Job
from samestep.job.training_data import first_shard
from samestep.numerics import random_streams
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.parallel.execution.executor import Executor
from samestep.setup.shard_result import Shard, ShardResult, by_model, torchs_own_layers
from samestep.state.digest import tensor_leaf
from samestep.state.job_traits import Difference, Traits
from samestep.system.device import to_device

CLOSE = {"float32": 1e-3, "bfloat16": 3e-2}  # relative, between kernels that round differently


def recorded_shard(job: Job, executor: Executor) -> Traits | None:
    """Loss, gradients and buffers of the shard, in worker 0; None elsewhere. All workers must call it."""
    if job.data is None:
        return None
    executor.share_values(everywhere=True)
    if executor.transport.rank != 0:
        return None
    numerics = executor.plan.numerics
    rows = len(shard_rows(job.batch_size, num_shards_of(job.batch_size, numerics.shards))[0])
    streams = random_streams.leave()
    try:
        batch = to_device(first_shard(job, numerics.shards), executor.device)
        shard = Shard(batch, (numerics.seed, "recorded shard"), rows)
        with executor.whole(), torchs_own_layers(executor.model), uncompiled():
            found = by_model(executor.model, executor.objective, numerics.precision, shard)
            return {**as_traits(found), "precision": numerics.precision}
    except Exception as error:  # noqa: BLE001 - the user's model, on a shard beside the run
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        random_streams.resume(streams)


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, what torch.compile made runs as it was written: another machine may compile it otherwise."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def as_traits(found: ShardResult) -> Traits:
    """As JSON: loss and weight in hexadecimal, of each gradient and buffer the hash and the norm."""
    value, weight, is_mean = found.facts
    return {
        "loss": value.hex(),
        "weight": weight.hex(),
        "is_mean": is_mean,
        "gradients": {name: _fact(grad) for name, grad in found.gradients.items()},
        "buffers": {name: _fact(buffer) for name, buffer in found.buffers.items()},
    }


def _fact(value: Tensor | None) -> list[Any] | None:
    if value is None:
        return None
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    norm = float(torch.linalg.vector_norm(dense if dense.is_complex() else dense.double()))
    return [tensor_leaf(dense)[:16], norm]


def compare_shards(there: Traits, here: Traits, *, exactly: bool) -> Iterator[Difference]:
    """The first difference between a recorded shard and the same one computed again."""
    if "error" in there or "error" in here:
        if there.get("error") != here.get("error"):
            yield Difference("loss", "recorded shard", there.get("error", "computed"), here.get("error", "computed"))
        return
    loss, again = (float.fromhex(shard["loss"]) for shard in (there, here))
    close = 0.0 if exactly else CLOSE[there["precision"]]
    weight, weight_again = (float.fromhex(shard["weight"]) for shard in (there, here))
    if not _close(loss, again, close) or not _close(weight, weight_again, close):
        yield Difference("loss", "loss on the recorded shard", _loss(there), _loss(here))
        return
    for kind, what in (("gradients", "gradient of {}"), ("buffers", "buffer {}")):
        old, new = there[kind], here[kind]
        for name in {**old, **new}:
            if not _same_fact(old.get(name), new.get(name), close):
                text = f"{what.format(name)} on the recorded shard"
                yield Difference("loss", text, _norm(old.get(name)), _norm(new.get(name)))
                return


def _same_fact(a: list[Any] | None, b: list[Any] | None, close: float) -> bool:
    if a is None or b is None:
        return a is b
    return a[0] == b[0] if not close else _close(a[1], b[1], 10 * close)


def _close(a: float, b: float, relative: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b if not relative else math.isclose(a, b, rel_tol=relative, abs_tol=relative * 1e-3)


def _loss(shard: Traits) -> str:
    return f"{float.fromhex(shard['loss']):.9g} with the weight {float.fromhex(shard['weight']):g}"


def _norm(fact: list[Any] | None) -> str:
    return "none" if fact is None else f"one with the norm {fact[1]:.9g} and the hash {fact[0]}"

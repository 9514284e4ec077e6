"""The state of a run as its workers hold it: hashed for the digest, written, read back.

Every worker contributes what it owns. Random streams are keyed by (seed, step, shard), so the seed
and the number of steps done *are* the state of the generators and the position in the data.
"""

import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from samestep.errors import CheckpointRefused, JobRefused
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.owned_state import StatePiece, StoredPiece, fill
from samestep.parallel.gradients.layout import dense
from samestep.state.checkpoint import FORMAT, Description, file_hash, publish, temporary_of
from samestep.state.digest import Leaves, chunk_leaves, joint_digest, tensor_leaf, value_leaf
from samestep.system.json_values import as_before, plain

OPTIMIZED = ("tensor", "int", "float", "edge", "local")  # labels of state of the optimizer, which each owner writes


def state_pieces(executor: Executor, *, once: bool = False) -> Iterator[StatePiece]:
    """The pieces that this worker owns; those that several hosts own come from each, or `once` from the first."""
    yield from executor.state().pieces(once=once)
    for name, constant in constants(executor):
        yield StatePiece(f"constant/{name}", constant)


def constants(executor: Executor) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that the optimizer does not hold."""
    managed = {id(p) for entry in executor.layout.entries for p in (entry.param, entry.whole)}
    return ((name, p) for name, p in executor.model.named_parameters() if id(p) not in managed)


def values(executor: Executor, step: int) -> dict[str, Any]:
    """The state that is not tensors, the same on every worker."""
    groups = [
        {"names": names, **{key: plain(value, group_text(executor, i, key)) for key, value in group.items()}}
        for i, (names, group) in enumerate(
            zip(executor.update.group_names, executor.update.state.hyperparameters(), strict=True)
        )
    ]
    scheduler = None if executor.scheduler is None else plain(executor.scheduler.state_dict(), "the scheduler's state")
    found = {"optimizer": groups, "scheduler": scheduler, "seed": executor.plan.numerics.seed, "step": step}
    numerics = executor.plan.numerics
    return found if numerics.policy is None else {**found, "sync": numerics.sync}


def group_text(executor: Executor, number: int, key: str) -> str:
    """A hyperparameter in words."""
    return f"{key!r} in parameter group {number} of the optimizer {type(executor.update.optimizer).__name__}"


def digest(executor: Executor, step: int, stored: Description | None = None) -> str:
    """SHA-256 over the state of the run after `step` steps. All workers must call it.

    stored: a checkpoint whose optimizers' and schedule's values count in the place of the executor's.
    """
    plain_values = values(executor, step)
    if stored is not None:
        plain_values |= {"optimizer": stored.optimizer, "scheduler": stored.scheduler}
    leaves: Leaves = {"values": value_leaf(plain_values)}
    for part in state_pieces(executor):
        if part.whole:
            leaves[part.label] = tensor_leaf(part.tensor)
        else:
            leaves |= chunk_leaves(part.label, part.tensor, part.start)
    return joint_digest(leaves, executor.transport)


def save(
    executor: Executor, step: int, root: Path, run: str, fingerprint: dict[str, Any], **job: dict[str, Any] | None
) -> Path:
    """Write a checkpoint. All workers must call it; it is there, whole, when they return.

    job: the description's fields about the job.
    """
    transport, temporary = executor.transport, temporary_of(root, run)
    found = digest(executor, step)
    if transport.rank == 0:
        temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
    transport.exchange(b"")
    path = temporary / f"worker-{transport.rank}.safetensors"
    tensors = {
        f"{part.label}@{part.start}": part.tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part in state_pieces(executor, once=True)
        if not part.whole or transport.rank == 0 or part.label.split("/", 1)[0] in OPTIMIZED
    }
    save_file(tensors, path)
    hashes = transport.exchange(file_hash(path).encode())
    if transport.rank == 0:
        state = values(executor, step)
        files = {f"worker-{rank}.safetensors": text.decode() for rank, text in enumerate(hashes)}
        description = Description(
            format=FORMAT,
            step=step,
            numerics=executor.plan.numerics.line(),
            digest=found,
            fingerprint=fingerprint,
            optimizer=state["optimizer"],
            scheduler=state["scheduler"],
            cpu=platform.processor() or platform.machine(),
            files=files,
            **job,
        )
        publish(temporary, description, root)
    transport.exchange(b"")
    return root


def restore(executor: Executor, folder: Path, description: Description) -> None:
    """Take this worker's pieces of a checkpoint, no matter which workers wrote them. All workers must call it."""
    state, files = executor.state(), [folder / name for name in sorted(description.files)]
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                label, _, start = key.rpartition("@")
                kind, _, name = label.partition("/")
                if kind == "constant":
                    dict(constants(executor))[name].data.copy_(file.get_tensor(key))
                else:
                    state.restore(_stored(file, key, label, int(start)))
    state.finish(StoredEdges(files))
    _restore_values(executor, description)
    executor.share_values()
    if (found := digest(executor, description.step, description)) != description.digest:
        raise CheckpointRefused(
            f"checkpoint {folder} was written with the state {description.digest[:16]}, and what was read from it is "
            f"{found[:16]}: remove the folder, or look at the memory and the disk of this machine"
        )


def _stored(file: Any, key: str, label: str, start: int) -> StoredPiece:
    return StoredPiece(label, start, partial(file.get_tensor, key), partial(file.get_slice, key))


class StoredEdges:
    """The state of a codec's edges in the files of a checkpoint; a host or two may have written the same."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, dict[int, Path]] = {}  # by label, then start
        for path in files:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    label, _, start = key.rpartition("@")
                    if label.startswith("edge/"):
                        self._places.setdefault(label, {})[int(start)] = path

    def read(self, name: str, start: int, stop: int, *, whole: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for label, places in self._places.items():
            stem, _, key = label.rpartition("/")
            if stem != name:
                continue
            for first, path in places.items():
                with safe_open(path, "pt") as file:
                    stored = file.get_slice(f"{label}@{first}")
                    if whole:
                        found[key] = stored[:]
                        continue
                    if key not in found:
                        found[key] = stored[0:0].new_zeros(stop - start)
                    fill(found[key], start, _stored(file, f"{label}@{first}", label, first))
        return found

    def parts(self, *, whole: bool) -> Iterator[tuple[str, Tensor, int, bool]]:
        for label, places in sorted(self._places.items()):
            for start, path in sorted(places.items()):
                with safe_open(path, "pt") as file:
                    yield label, file.get_tensor(f"{label}@{start}"), start, whole


def _restore_values(executor: Executor, description: Description) -> None:
    for update, scheduler in executor.optimizers():
        for group, stored in zip(update.optimizer.param_groups, description.optimizer, strict=True):
            for name, value in stored.items():
                if name != "names":
                    group[name] = as_before(value, group.get(name))
        if scheduler is not None and description.fingerprint["scheduler"] == type(scheduler).__name__:
            scheduler.load_state_dict(as_before(description.scheduler, scheduler.state_dict()))


def weights(executor: Executor) -> dict[str, Tensor]:
    """The model's `state_dict` under its own names, compiled or not, as independent contiguous tensors."""
    with executor.whole():
        return {
            name: dense(value.detach().cpu()).contiguous().clone() for name, value in named_weights(executor).items()
        }


def named_weights(executor: Executor) -> dict[str, Tensor]:
    """The model's `state_dict`. Raises JobRefused for what a file of tensors cannot hold."""
    found = executor.model.state_dict()
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise JobRefused(
                f"{name} in the model's state_dict is a {type(value).__name__}, which a file of weights cannot hold "
                "without pickle: let get_extra_state return a tensor, or register what it keeps as buffers"
            )
        check_storable(f"{name} in the model's state_dict", value)
    compiled = [name for name, module in executor.model.named_modules() if type(module).__name__ == "OptimizedModule"]
    own = {name: uncompiled(name, compiled) for name in found}
    return {own[name]: value for name, value in found.items()} if len(set(own.values())) == len(found) else found


def uncompiled(name: str, compiled: Sequence[str]) -> str:
    """A parameter's name without the level that torch.compile puts in. compiled: names of the compiled modules, of
    which inner ones are within outer ones."""
    for module in reversed(compiled):
        prefix = f"{module}." if module else ""
        if name.startswith(f"{prefix}_orig_mod."):
            name = prefix + name.removeprefix(f"{prefix}_orig_mod.")
    return name


def check_storable(what: str, tensor: Tensor) -> None:
    """Raises JobRefused for a tensor that safetensors has no type for."""
    try:
        to_bytes({"x": torch.zeros(1, dtype=tensor.dtype)})
    except (KeyError, ValueError, RuntimeError):
        raise JobRefused(
            f"{what} is {tensor.dtype}, which a file of tensors (safetensors) cannot hold: keep it in another type, "
            "for example its view_as_real"
        ) from None

"""The state of a run as its workers hold it: hashed for the digest, written, read back.

Every worker contributes what it owns. Random streams are keyed by (seed, step, shard), so the seed
and the number of steps done *are* the state of the generators and the position in the data.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.local_executor import LocalExecutor
from samestep.parallel.execution.stale_executor import StaleExecutor
from samestep.parallel.gradients.layout import Piece, dense, storage_order
from samestep.parallel.gradients.stretches import is_first
from samestep.state.checkpoint import (
    FORMAT,
    Description,
    file_hash,
    publish,
    temporary_of,
)
from samestep.state.digest import (
    Leaves,
    chunk_leaves,
    joint_digest,
    tensor_leaf,
    value_leaf,
)
from samestep.system.json_values import as_before, plain


@dataclass(frozen=True)
class StatePiece:
    """A piece of state that this worker holds: elements start.. of `label`, or the whole of it."""

    label: str
    tensor: Tensor
    start: int = 0
    whole: bool = True


def parts(executor: Executor, *, once: bool = False) -> Iterator[StatePiece]:
    """Everything this worker owns; what several hosts own comes from each of them, or `once` from the first."""
    if isinstance(executor, LocalExecutor):
        yield from (StatePiece(*part) for part in executor.parts(once=once))
        yield from (StatePiece(f"constant/{name}", constant) for name, constant in constants(executor))
        return
    hosts = executor.transport.hosts
    own = {
        p
        for p, _ in executor.update.targets
        if not once or is_first(executor.homes[p.entry], hosts, executor.transport.rank)
    }
    for piece in (piece for piece, _ in executor.update.targets if piece in own):
        entry = executor.layout.entries[piece.entry]
        flat = storage_order(entry.param.detach())[piece.start : piece.stop]
        yield StatePiece(f"parameter/{entry.name}", flat, piece.start, whole=False)
    for piece, kind, key, value in executor.update.state():
        if piece not in own:
            continue
        label = f"{kind}/{executor.layout.entries[piece.entry].name}/{key}"
        if kind == "elementwise":
            yield StatePiece(label, value, piece.start, whole=False)
        else:
            yield StatePiece(label, value)
    is_own = not once or is_first_to_tell(executor)
    for label, value, start, is_whole in executor.under_way():  # before the edges, which what is under way may cross
        if is_own or is_whole:
            yield StatePiece(label, value, start, is_whole)
    for label, value, start, is_whole in executor.edges.parts() if executor.edges is not None else ():
        yield StatePiece(label, value, start, is_whole)
    for name, buffer in zip(executor.buffers.names, executor.buffers.values, strict=True):
        yield StatePiece(f"buffer/{name}", buffer)
    for name, constant in constants(executor):
        yield StatePiece(f"constant/{name}", constant)


def is_first_to_tell(executor: Executor) -> bool:
    """Of hosts that all have the same gradients under way, whether this worker's is the first."""
    hosts = executor.transport.hosts
    return hosts[executor.transport.rank] == hosts[0]


def constants(executor: Executor) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that the optimizer does not hold."""
    managed = {id(p) for entry in executor.layout.entries for p in (entry.param, entry.whole)}
    return ((name, p) for name, p in executor.model.named_parameters() if id(p) not in managed)


def values(executor: Executor, step: int) -> dict[str, Any]:
    """The state that is not tensors, the same on every worker."""
    groups = [
        {"names": names, **plain(group, "the optimizer's parameter group")}
        for names, group in zip(executor.update.group_names, executor.update.hyperparameters(), strict=True)
    ]
    scheduler = None if executor.scheduler is None else plain(executor.scheduler.state_dict(), "the scheduler's state")
    found = {"optimizer": groups, "scheduler": scheduler, "seed": executor.plan.numerics.seed, "step": step}
    return found if executor.plan.numerics.sync == "exact" else {**found, "sync": executor.plan.numerics.sync}


def digest(executor: Executor, step: int) -> str:
    """SHA-256 over the state of the run after `step` steps. All workers must call it."""
    leaves: Leaves = {"values": value_leaf(values(executor, step))}
    for part in parts(executor):
        if part.whole:
            leaves[part.label] = tensor_leaf(part.tensor)
        else:
            leaves |= chunk_leaves(part.label, part.tensor, part.start)
    return joint_digest(leaves, executor.transport)


def save(executor: Executor, step: int, root: Path, run: str, fingerprint: dict[str, Any]) -> Path:
    """Write a checkpoint. All workers must call it; it is there, whole, when they return."""
    transport, temporary = executor.transport, temporary_of(root, run)
    found = digest(executor, step)
    if transport.rank == 0:
        temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
    transport.exchange(b"")
    path = temporary / f"worker-{transport.rank}.safetensors"
    owned = (part for part in parts(executor, once=True) if not part.whole or transport.rank == 0 or _is_state(part))
    save_file(
        {
            f"{part.label}@{part.start}": part.tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part in owned
        },
        path,
    )
    hashes = transport.exchange(file_hash(path).encode())
    if transport.rank == 0:
        state = values(executor, step)
        files = {f"worker-{rank}.safetensors": text.decode() for rank, text in enumerate(hashes)}
        publish(
            temporary,
            Description(
                format=FORMAT,
                step=step,
                numerics=executor.plan.numerics.line(),
                digest=found,
                fingerprint=fingerprint,
                optimizer=state["optimizer"],
                scheduler=state["scheduler"],
                cpu=platform.processor() or platform.machine(),
                files=files,
            ),
            root,
        )
    transport.exchange(b"")
    return root


def _is_state(part: StatePiece) -> bool:
    return part.label.split("/", 1)[0] in ("tensor", "int", "float", "edge", "local")


def restore(executor: Executor, folder: Path, description: Description) -> None:
    """Take this worker's pieces of a checkpoint, whichever workers wrote them. All workers must call it."""
    owned = {executor.layout.entries[piece.entry].name: piece for piece, _ in executor.update.targets}
    collected: dict[tuple[str, str], Tensor] = {}
    for file_name in sorted(description.files):
        with safe_open(folder / file_name, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                label, _, start = key.rpartition("@")
                kind, _, name = label.partition("/")
                if isinstance(executor, LocalExecutor) and kind != "constant":
                    executor.put_back(label, int(start), partial(file.get_tensor, key))
                elif kind == "parameter" and name in owned:
                    target = storage_order(executor.layout.entries[owned[name].entry].param.data)
                    _fill(target[owned[name].start : owned[name].stop], owned[name], file.get_slice(key), int(start))
                elif kind == "elementwise" and (piece := owned.get(name.rpartition("/")[0])):
                    stored = file.get_slice(key)
                    if (kind, name) not in collected:
                        collected[kind, name] = stored[0:0].new_empty(piece.stop - piece.start)
                    _fill(collected[kind, name], piece, stored, int(start))
                elif kind == "underway" and isinstance(executor, StaleExecutor):
                    step, _, entry = name.partition("/")
                    if (piece := owned.get(entry)) is not None:
                        _fill(executor.total_of(int(step), piece), piece, file.get_slice(key), int(start))
                elif kind == "present" and isinstance(executor, StaleExecutor):
                    executor.take_back(int(name), file.get_tensor(key).numpy().tobytes())
                elif kind in ("tensor", "int", "float") and name.rpartition("/")[0] in owned:
                    collected[kind, name] = file.get_tensor(key)
                elif kind == "buffer":
                    i = executor.buffers.names.index(name)
                    executor.buffers.set(i, file.get_tensor(key).to(executor.buffers.values[i].device))
                elif kind == "constant":
                    dict(constants(executor))[name].data.copy_(file.get_tensor(key))
    for (kind, name), value in collected.items():
        parameter, _, state_key = name.rpartition("/")
        executor.update.restore(owned[parameter], kind, state_key, value)
    if executor.edges is not None:
        executor.edges.before = StoredEdges([folder / name for name in sorted(description.files)])
    _restore_values(executor, description)
    executor.share_values()


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
                    _fill(found[key], Piece(0, start, stop), stored, first)
        return found

    def parts(self, *, whole: bool) -> Iterator[tuple[str, Tensor, int, bool]]:
        for label, places in sorted(self._places.items()):
            for start, path in sorted(places.items()):
                with safe_open(path, "pt") as file:
                    yield label, file.get_tensor(f"{label}@{start}"), start, whole


def _fill(target: Tensor, piece: Piece, stored: Any, start: int) -> None:
    """Copy what `stored` (elements start.. of the parameter) has of `piece` into `target`."""
    stop = start + stored.get_shape()[0]
    low, high = max(start, piece.start), min(stop, piece.stop)
    if low < high:
        target[low - piece.start : high - piece.start].copy_(stored[low - start : high - start])


def _restore_values(executor: Executor, description: Description) -> None:
    for update, scheduler in executor.optimizers():
        for group, stored in zip(update.optimizer.param_groups, description.optimizer, strict=True):
            for name, value in stored.items():
                if name != "names":
                    group[name] = as_before(value, group.get(name))
        if scheduler is not None:
            scheduler.load_state_dict(as_before(description.scheduler, scheduler.state_dict()))


def weights(executor: Executor) -> dict[str, Tensor]:
    """The model's `state_dict`, as independent contiguous tensors."""
    with executor.whole():
        return {
            name: dense(value.detach().cpu()).contiguous().clone()
            for name, value in executor.model.state_dict().items()
        }

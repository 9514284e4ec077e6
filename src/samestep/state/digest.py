"""The digest: SHA-256 over the whole state of a run, independent of which worker holds which part.

Every worker hashes what it owns in leaves that do not depend on the assignment (32,768 elements of a
tensor's own index); the digest is the hash of all leaves in the order of their labels.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from samestep.errors import Disagreement
from samestep.parallel.gradients.layout import CHUNK, grid_chunks
from samestep.transport.transport import Transport

Leaves = dict[str, str]


def tensor_leaf(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and elements (row by row, whatever its strides)."""
    data = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    found.update(data.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def chunk_leaves(label: str, flat: Tensor, start: int) -> Leaves:
    """Leaves of elements start.. of a tensor that is cut at the chunk grid. `flat` is 1-D."""
    first = start // CHUNK
    return {f"{label}/{first + i:08d}": tensor_leaf(chunk) for i, chunk in enumerate(grid_chunks(flat, start))}


def value_leaf(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def joint_digest(leaves: Leaves, transport: Transport) -> str:
    """The digest over the leaves of all workers. Raises Disagreement where two differ."""
    records = transport.exchange(json.dumps(leaves).encode())
    return digest_of(json.loads(record) for record in records)


def digest_of(workers: Iterable[Leaves]) -> str:
    """Workers may hold the same leaf, and must then agree on it. Raises Disagreement where they do not."""
    joint: dict[str, tuple[int, str]] = {}
    for rank, leaves in enumerate(workers):
        for label, leaf in leaves.items():
            holder, known = joint.setdefault(label, (rank, leaf))
            if known != leaf:
                raise Disagreement(f"workers {holder} and {rank} hold different values of {label}, which must be equal")
    text = "".join(f"{label} {leaf}\n" for label, (_, leaf) in sorted(joint.items()))
    return hashlib.sha256(text.encode()).hexdigest()

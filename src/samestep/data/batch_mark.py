"""A fast fingerprint of a batch, and a batch in words: whether two workers were given the same one."""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

SAMPLE = 512  # words of a tensor that are hashed; all are summed
SHOWN = 4  # elements that an error shows


def batch_mark(batch: Any, before: int = 0) -> int:
    """A fingerprint of 32 bits over types, shapes and contents, going on from the one `before`.

    Every byte counts in a sum, and the order in a sample of 4 KiB of each tensor: the time is that of reading once.
    """
    leaves, form = tree_flatten(batch)
    found = zlib.crc32(f"{len(leaves)} {form.type}".encode(), before)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            found = zlib.crc32((repr(leaf) if isinstance(leaf, PLAIN) else type(leaf).__name__).encode(), found)
            continue
        found = zlib.crc32(f"{leaf.dtype} {tuple(leaf.shape)}".encode(), found)
        data = leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        words = data[: len(data) // 8 * 8].view(np.uint64)
        sample = np.ascontiguousarray(words[:: max(1, len(words) // SAMPLE)])
        found = zlib.crc32(data[len(words) * 8 :].tobytes() + sample.tobytes(), found)
        if len(sample) < len(words):
            found = zlib.crc32(words.sum(dtype=np.uint64).tobytes(), found)
    return found


PLAIN = (str, bytes, int, float, bool, type(None))


def in_words(batch: Any) -> str:
    """The first tensor: its shape, type and first elements."""
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor):
            few = ", ".join(
                f"{value:.6g}" for value in leaf.detach().cpu().reshape(-1)[:SHOWN].to(torch.float64).tolist()
            )
            return f"{tuple(leaf.shape)} {leaf.dtype} [{few}{', ...' * (leaf.numel() > SHOWN)}]"
    return f"a {type(batch).__name__} without tensors"

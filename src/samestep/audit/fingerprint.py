"""Fingerprints: 64 bits for any memory, cheap enough to take of a whole training state.

    bytes         as 64-bit words, in blocks of `width` words: w[b, c]
    of a block    f[b] = sum over c of w[b, c] * odd(c)     mod 2^64
    of all        F = sum over b of f[b] * odd(b)           mod 2^64

A flipped bit changes one word by 2^i or -2^i. An odd factor has an inverse mod 2^64, so neither f nor F can stay
as it was: one flipped bit is always seen, and so is any change inside one word. Other changes are missed with a
chance of about 2^-64, as long as nobody makes them on purpose: this is no hash against malice.

The sum over a block is a product of a matrix with a vector, which torch computes at the speed of memory.
"""

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

from samestep.numerics.mixing import mixed_bits

WIDE, NARROW = 1024, 32  # words per block: 8 KiB for large memory, 256 bytes to tell small tensors apart
WORD = 8  # bytes
ROUND = 1 << 64


def blocks(flat: Tensor, width: int = WIDE) -> Tensor:
    """The fingerprint of every block of contiguous memory; the last one is filled up with zeros. int64, 1-D."""
    words = as_words(flat, width)
    factors = odd(width, words.device)
    return torch.mv(words, factors) if words.device.type == "cpu" else (words * factors).sum(1)


def joined(found: Tensor) -> int:
    """The fingerprint of memory whose blocks have these, below 2^64."""
    return int((found * odd(len(found), found.device)).sum()) % ROUND


def fingerprint(tensor: Tensor) -> int:
    """The fingerprint of a tensor's elements, row by row, whatever its strides; below 2^64."""
    return joined(blocks(tensor.detach().contiguous().view(-1)))


def as_words(flat: Tensor, width: int) -> Tensor:
    """Memory as int64 (blocks, width). A copy only where bytes are missing, or do not begin at a word."""
    data = flat.detach().view(torch.uint8)
    if (missing := -len(data) % (width * WORD)) or data.storage_offset() % WORD or data.data_ptr() % WORD:
        data = torch.cat([data, data.new_zeros(missing)])
    return data.view(torch.int64).view(-1, width)


@cache
def _odd(count: int) -> Tensor:
    """Well mixed odd numbers, the same on every machine."""
    mixed = mixed_bits(np.arange(1, count + 1)) | np.uint64(1)
    return torch.from_numpy(mixed.view(np.int64))


def odd(count: int, device: torch.device) -> Tensor:
    """The first `count` factors."""
    size = 1 << max(10, (count - 1).bit_length())
    return _odd(size)[:count].to(device)


def key_of(label: str) -> int:
    """64 bits for a name."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")

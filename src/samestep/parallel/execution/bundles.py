"""Bundles: what a shard carries over a cut, as one message with a name.

Between two workers that hold several stages each, bundles may be sent in another order than the receiver asks for them:
activations for one stage and gradients for another. The name says which is which; what comes too early is kept.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.transport.transport import Transport

HEAD = struct.Struct("<BIIH")  # whether it is a gradient, shard, stage, number of tensors


@dataclass(frozen=True)
class Name:
    is_gradient: bool
    shard: int
    stage: int  # the one before the cut


@dataclass
class Bundles:
    """One worker's bundles, out and in."""

    transport: Transport
    _early: dict[tuple[int, Name], tuple[Tensor, list[Tensor]]] = field(default_factory=dict)

    def send(self, peer: int, name: Name, note: Tensor, tensors: Sequence[Tensor]) -> None:
        """note: a few bytes (uint8, 1-D) that come along."""
        head = HEAD.pack(name.is_gradient, name.shard, name.stage, len(tensors))
        self.transport.send(torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), note]), peer)
        for tensor in tensors:
            self.transport.send(tensor, peer)

    def receive(self, peer: int, name: Name) -> tuple[Tensor, list[Tensor]]:
        """The note and the tensors of the bundle named so."""
        while (peer, name) not in self._early:
            head = self.transport.receive(peer)
            is_gradient, shard, stage, count = HEAD.unpack(head[: HEAD.size].numpy().tobytes())
            tensors = [self.transport.receive(peer) for _ in range(count)]
            self._early[peer, Name(bool(is_gradient), shard, stage)] = head[HEAD.size :], tensors
        return self._early.pop((peer, name))

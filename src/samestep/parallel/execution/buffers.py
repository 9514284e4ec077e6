"""Buffers, such as BatchNorm statistics, over the shards of a step.

Every shard starts from the step's buffers, on a copy of its own: rebound, not copied into, so that
what backward saved stays as it was. After the step a buffer takes the shards' common value; where
they differ it takes their row-weighted mean, in the tree's order, or what `buffer_rules.py` says; integers that differ
are an error.
Run one after the other instead, eight shards would move a running mean eight times.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.numerics.reduction_tree import tree_sum
from samestep.parallel.execution.buffer_rules import Rule, check_mean, rule_of


class Buffers:
    """The buffers of one worker's model.

    `boards[s]` is flat fabric memory into which shard s's buffers are written for everybody.
    """

    def __init__(self, model: nn.Module, boards: Sequence[Tensor]) -> None:
        homes: dict[int, list[tuple[nn.Module, str]]] = {}
        self.names: list[str] = []
        self.values: list[Tensor] = []  # the step's buffers
        for prefix, module in model.named_modules():
            for local, buffer in module._buffers.items():
                if buffer is None:
                    continue
                if id(buffer) not in homes:
                    self.names.append(f"{prefix}.{local}" if prefix else local)
                    self.values.append(buffer)
                homes.setdefault(id(buffer), []).append((module, local))
        self._homes = list(homes.values())
        self._rules = [rule_of(*at[0], name) for at, name in zip(self._homes, self.names, strict=True)]
        self._starts = buffer_starts(self.values)
        self._boards = boards
        self._fresh: set[int] = set()  # buffers that are bound to an unchanged copy
        self._received: dict[tuple[int, int], Tensor] = {}  # of this step, from other hosts; by shard and buffer

    def begin_shard(self, only: Iterable[int] | None = None) -> None:
        """Bind a copy of the step's buffers; a copy that the last shard left unchanged serves again."""
        for i in range(len(self.values)) if only is None else only:
            if i not in self._fresh:
                self._bind(i, self.values[i].clone())
                self._fresh.add(i)

    def forget(self, only: Iterable[int]) -> None:
        """Discard changes to the buffers that are bound now."""
        self._fresh.difference_update(only)

    def end_shard(self, shard: int, only: Iterable[int] | None = None) -> bytes:
        """Write the buffers that the shard changed to its board. Returns one byte per buffer: whether it changed.

        Raises JobRefused where a buffer has another shape or type now.
        """
        changed = bytearray(len(self.values))
        for i in range(len(self.values)) if only is None else only:
            value = self.values[i]
            bound = self.bound_tensor(i)
            if bound.shape != value.shape or bound.dtype != value.dtype:
                raise JobRefused(
                    f"forward changed buffer {self.names[i]} from {value.dtype} {tuple(value.shape)} to "
                    f"{bound.dtype} {tuple(bound.shape)}: keep its shape, or keep it out of the buffers"
                )
            if not same_bits(bound, value):
                changed[i] = 1
                self._fresh.discard(i)
                self._board(shard, i).copy_(bound)
        return bytes(changed)

    def merge(self, changed: Sequence[bytes], rows: Sequence[int]) -> None:
        """Form the new buffers from the boards of all shards of the step, and bind them.

        `changed[s]` is what `end_shard` returned for shard s, `rows[s]` its number of rows.
        """
        for i, value in enumerate(self.values):
            if any(shard[i] for shard in changed):
                shards = [self._of_shard(s, i) if shard[i] else value for s, shard in enumerate(changed)]
                self.set(i, merged(shards, rows, self.names[i], self._rules[i]))
        self._received.clear()

    def record(self, changed: Mapping[int, bytes], *, with_contents: bool) -> dict[int, tuple[bytes, bytes]]:
        """By shard: what `end_shard` returned, and, for hosts that do not see its board, the changed buffers."""
        return {shard: (own, self._contents(shard, own) if with_contents else b"") for shard, own in changed.items()}

    def _contents(self, shard: int, changed: bytes) -> bytes:
        boards = (self._board(shard, i).view(-1).view(torch.uint8) for i in range(len(changed)) if changed[i])
        return b"".join(board.cpu().numpy().tobytes() for board in boards)

    def receive(self, shard: int, changed: bytes, contents: bytes) -> None:
        """Keep the changed buffers of a shard of another host until they are merged."""
        at = 0
        for i, value in enumerate(self.values):
            if changed[i]:
                stop = at + value.numel() * value.element_size()
                flat = torch.frombuffer(bytearray(contents[at:stop]), dtype=value.dtype)
                self._received[shard, i] = flat.to(value.device).view(value.shape)
                at = stop

    def _of_shard(self, shard: int, i: int) -> Tensor:
        return self._received[shard, i] if (shard, i) in self._received else self._board(shard, i)

    def set(self, i: int, value: Tensor) -> None:
        """Make `value` the step's buffer i, and bind it."""
        self.values[i] = value
        self._bind(i, value)
        self._fresh.discard(i)

    def bound(self) -> list[Tensor]:
        """The buffers that are bound now; `rebind` puts them back, when shards in lockstep take turns."""
        self._fresh.clear()  # the next shard to begin must not take a copy that this one goes on with
        return [self.bound_tensor(i) for i in range(len(self.values))]

    def rebind(self, bound: Sequence[Tensor]) -> None:
        for i, value in enumerate(bound):
            self._bind(i, value)
        self._fresh.clear()

    def taken(self, changed: bytes) -> dict[int, Tensor]:
        """The buffers that are bound now, of those that a shard changed; `give_back` binds them for its backward."""
        return {i: self.bound_tensor(i) for i, has_changed in enumerate(changed) if has_changed}

    def give_back(self, taken: Mapping[int, Tensor]) -> None:
        for i, value in taken.items():
            self._bind(i, value)
        self._fresh.difference_update(taken)

    def bound_tensor(self, i: int) -> Tensor:
        module, local = self._homes[i][0]
        bound = module._buffers[local]
        assert bound is not None
        return bound

    def _bind(self, i: int, value: Tensor) -> None:
        for module, local in self._homes[i]:
            module._buffers[local] = value

    def _board(self, shard: int, i: int) -> Tensor:
        value, start = self.values[i], self._starts[i]
        flat = self._boards[shard][start : start + value.numel() * value.element_size()]
        return flat.view(value.dtype).view(value.shape)


def buffer_starts(buffers: Sequence[Tensor]) -> list[int]:
    """The byte at which each buffer begins in a board; the last number is the board's size."""
    starts = [0]
    for buffer in buffers:
        starts.append(-(-(starts[-1] + buffer.numel() * buffer.element_size()) // 64) * 64)
    return starts


def merged(shards: Sequence[Tensor], rows: Sequence[int], name: str, rule: Rule | None = None) -> Tensor:
    """One buffer's value after the step. Raises JobRefused for integers that disagree, and what else has no mean."""
    if all(same_bits(shard, shards[0]) for shard in shards[1:]):
        return shards[0].clone()
    if rule is not None:
        return rule(shards)
    if not (shards[0].is_floating_point() or shards[0].is_complex()):
        raise JobRefused(
            f"the integer buffer {name} ends differently in different shards, and whole numbers have no mean: "
            "make it depend on the step, not on the data, or keep it out of the buffers"
        )
    check_mean(shards, name)
    total = sum(rows)
    return tree_sum([shard * (count / total) for shard, count in zip(shards, rows, strict=True)])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit: NaN equals itself, 0.0 and -0.0 differ. Kernels change statistics
    without raising the version counter, so contents are compared."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))

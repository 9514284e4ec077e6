"""The order in which workers enter collectives: all must meet in the same one, with the same tensor.

worker 0    all_reduce a    all_reduce b    barrier
worker 1    all_reduce b                                collective 1: a meets b
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samestep.verification.causes import Cause, Finding

WITHOUT_SITE = ("broadcast", "scatter", "gather", "broadcast_object_list")  # a root may call them on a line of its own
BETWEEN_TWO = ("send", "recv", "isend", "irecv")

Call = tuple[int, str, str, tuple[int, ...], str]  # step, collective, tensor, shape, file:line


@dataclass(frozen=True)
class ObservedWorker:
    """One worker's end, as seen from outside."""

    rank: int
    status: int
    killed: bool
    collectives: tuple[Call, ...]
    in_collective: bool  # still in the last one
    last_lines: tuple[str, ...]  # of its output
    stack: str

    @property
    def failed(self) -> bool:
        return self.status != 0


def judge_collectives(step: int, observed: Sequence[ObservedWorker]) -> Finding | None:
    return order_differs({one.rank: [call for call in one.collectives if call[0] == step] for one in observed})


def order_differs(calls: Mapping[int, Sequence[Call]]) -> Finding | None:
    """The first collective in which a worker does not meet the first worker."""
    calls = {rank: [call for call in each if call[1] not in BETWEEN_TWO] for rank, each in calls.items()}
    first, *others = sorted(calls)
    for other in others:
        for number, (one, two) in enumerate(zip(calls[first], calls[other], strict=False)):
            if identity(one) != identity(two):
                places = f"worker {first} enters {describe(one)}, worker {other} enters {describe(two)}"
                why = f"collective {number + 1}: {places}"
                return Finding(Cause.COLLECTIVE_ORDER, one[0], "collective", one[2] or one[1], why, worker=other)
        if len(calls[first]) != len(calls[other]):
            rank = first if len(calls[first]) > len(calls[other]) else other
            one = calls[rank][min(len(calls[first]), len(calls[other]))]
            why = f"only worker {rank} enters {describe(one)}"
            return Finding(Cause.COLLECTIVE_ORDER, one[0], "collective", one[2] or one[1], why, worker=rank)
    return None


def identity(call: Call) -> tuple[int, str, str, tuple[int, ...], str]:
    """The part of a call that must be equal on all workers: its tensor, or its line where the tensor has no name."""
    step, what, tensor, shape, site = call
    return step, what, tensor, shape, "" if tensor or what in WITHOUT_SITE else site


def describe(call: Call) -> str:
    return f"{call[1]} {call[2]}".rstrip() + f" {list(call[3])} at {call[4]}"

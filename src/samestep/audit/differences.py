"""Records of all workers' state, compared; and who is to blame for a difference.

A record has the fingerprint of everything that its worker answers for, by the key of its name. Whoever holds the same
name must have the same fingerprint.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samestep.audit.fingerprint import key_of
from samestep.plan.plan import workers_text

SPELLED = 2  # names of what else differs


def packed(found: Mapping[str, int]) -> bytes:
    """A record as bytes: key and fingerprint of each name."""
    return np.array([[key_of(name), value] for name, value in found.items()], dtype="<u8").tobytes()


def differing(records: Sequence[bytes]) -> set[int]:
    """The keys on which workers differ."""
    pairs: NDArray[np.uint64] = np.frombuffer(b"".join(records), dtype="<u8").reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    same_key = pairs[1:, 0] == pairs[:-1, 0]
    return {int(key) for key in pairs[1:, 0][same_key & (pairs[1:, 1] != pairs[:-1, 1])]}


@dataclass(frozen=True)
class ReplicaDifference:
    """sides: the workers that agree with one another, the largest group first. culprits: the wrong ones; empty when
    there are as many on either side and nothing else tells."""

    name: str
    sides: tuple[tuple[int, ...], ...]
    culprits: tuple[int, ...]


def difference(name: str, values: Mapping[int, Any], right: Any = None) -> ReplicaDifference:
    """values: of each worker that holds it. right: what it should be, where somebody knows; else the majority is."""
    counts = Counter(values.values())
    sides = tuple(tuple(w for w, value in values.items() if value == side) for side, _ in counts.most_common())
    if right is None:
        (first, most), *others = counts.most_common()
        right = first if not others or most > others[0][1] else None
    culprits = () if right is None else tuple(worker for worker, value in values.items() if value != right)
    return ReplicaDifference(name, sides, culprits)


@dataclass(frozen=True)
class Again:
    """Result of doing the steps again. since: the state from which that began.

    distances: how far copies are from that, of a worker of each side. A copy that was right at first may be off as
    well: what a wrong one has done to the sums of gradients is in all of them.
    """

    since: str
    distances: Mapping[int, float]


def nearest(found: ReplicaDifference, distances: Mapping[int, float]) -> ReplicaDifference:
    """Decide between sides that are equally large: the one nearest to what should be is right, the others are wrong.

    distances: of each side's first worker.
    """
    off = {side: distances[side[0]] for side in found.sides}
    best = min(off.values())
    if list(off.values()).count(best) > 1 or math.isinf(best):
        return found
    return replace(found, culprits=tuple(sorted(w for side in found.sides if off[side] > best for w in side)))


def text_of(
    found: ReplicaDifference, step: int, last_good: int, others: Sequence[str] = (), again: Again | None = None
) -> str:
    """The sentence for a difference that an audit after `step` steps has found, the last good one being at `last_good`.

    others: what differs besides.
    """
    sides = " and ".join(workers_text(side) for side in found.sides)
    text = f"audit after step {step}: {found.name} differs between {sides}, which must be equal"
    if others:
        text += f" (so {'do' if len(others) > 1 else 'does'} {', '.join(others[:SPELLED])}"
        text += f" and {len(others) - SPELLED} more)" if len(others) > SPELLED else ")"
    text += f"; the last good audit was after step {last_good}. "
    anew = "" if again is None else f"what one worker finds that has done all steps since {again.since} again"
    if found.culprits:
        text += f"The culprit is {workers_text(found.culprits)}: look at its memory, and at what it does on its own"
        if again is not None:
            far = (f"worker {rank} by {off:.3g} in all" for rank, off in sorted(again.distances.items()))
            text += f". Held against {anew}, its copy is the wrong one: off are {', '.join(far)}"
        return text
    text += f"As many are on either side, and as far from {anew}" if anew else "As many are on either side"
    return text + ": a third host, or --audit 1, would tell who is wrong"


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """Path of the first difference between two plain values; None where they are equal."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}, key=str):
            if (found := first_difference(a.get(key), b.get(key), f"{path} {key}".strip())) is not None:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            if (found := first_difference(one, other, f"{path} {i}".strip())) is not None:
                return found
        return None
    return None if a == b else path

"""Codecs as text: which one, and on which edges of the reduction tree.

    CODEC[:SETTING]@LEVEL[,LEVEL...]      int8@2    topk:0.01@2,3    powersgd:4@0    bfloat16@1
    none

Level l is of the edges from nodes of level l to their parents. A node without a right sibling is
promoted first: of five shards, the last one meets the sum of the other four at level 2, and its edge
is one of level 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

from samestep.codec.bfloat16 import BFloat16
from samestep.codec.codec import Codec
from samestep.codec.feedback import Feedback
from samestep.codec.int8 import Int8
from samestep.codec.powersgd import PowerSGD
from samestep.codec.topk import TopK
from samestep.errors import PlanRefused

DEFAULTS: dict[str, Codec] = {"bfloat16": BFloat16(), "int8": Int8(), "topk": TopK(), "powersgd": PowerSGD()}
SETTINGS: dict[str, Callable[[str], Codec]] = {
    "int8": lambda text: Int8(int(text)),
    "topk": lambda text: TopK(float(text)),
    "powersgd": lambda text: PowerSGD(int(text)),
}
NONE = "none"
LEVELS = {str(level): level for level in range(32)}


@dataclass(frozen=True)
class EdgeCodec:
    """A codec with error feedback, on the edges of some levels. `str()` is its text, settings and all."""

    codec: Feedback
    levels: tuple[int, ...]  # rising

    def __str__(self) -> str:
        return f"{self.codec.inner.name}@{','.join(map(str, self.levels))}"

    def applies_to(self, level: int) -> bool:
        """Whether to edges from nodes of this level, after their promotion, to their parents."""
        return level in self.levels

    def check(self, num_shards: int) -> None:
        """Refuse levels at which a tree over `num_shards` has no edge: nothing would be compressed there."""
        for level in self.levels:
            if 1 << level >= num_shards:
                raise PlanRefused(
                    f"the codec {self} is for edges of level {level}, and the tree over {num_shards} shards has "
                    f"edges of {_levels_of(num_shards)}: leave level {level} out, or use more than "
                    f"{1 << level} shards"
                )


def parse_codec(text: str, source: str = "--codec") -> EdgeCodec | None:
    """The codec that `text` spells; None for "none". Raises PlanRefused, naming `source`, for anything else."""
    if text == NONE:
        return None
    spelled, at, levels = text.partition("@")
    codec = _codec(spelled, source)
    if not at:
        raise PlanRefused(
            f"{source} has {text!r}, which does not say on which edges of the tree; write for example "
            f"{text}@0 (between single shards) or {text}@1,2, or {NONE}"
        )
    return EdgeCodec(Feedback(codec), _levels(levels, text, source))


def _codec(spelled: str, source: str) -> Codec:
    name, colon, value = spelled.partition(":")
    if name not in DEFAULTS:
        raise PlanRefused(f"{source} has the codec {name!r}; there are {', '.join(DEFAULTS)}, and {NONE}")
    if not colon:
        return DEFAULTS[name]
    if name not in SETTINGS:
        raise PlanRefused(f"{source} has {spelled!r}, and {name} takes no setting; write {name}")
    try:
        return SETTINGS[name](value)
    except ValueError:
        example = DEFAULTS[name].name
        raise PlanRefused(
            f"{source} has {spelled!r}, and {value!r} is no number of its kind; write for example {example}"
        ) from None


def _levels(levels: str, text: str, source: str) -> tuple[int, ...]:
    words = levels.split(",")
    if not LEVELS.keys() >= set(words):
        raise PlanRefused(
            f"{source} has {text!r}, with {levels!r} for the levels of the tree; "
            f"write whole numbers from 0 to {max(LEVELS.values())} with commas between them, e.g. @1,2"
        )
    return tuple(sorted({LEVELS[word] for word in words}))


def _levels_of(num_shards: int) -> str:
    top = (num_shards - 1).bit_length() - 1
    return f"levels 0 to {top}" if top > 0 else "level 0 only" if top == 0 else "no level"

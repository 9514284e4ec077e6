"""When workers must agree, as text: part of the numbers.

    exact                             every step; the default
    stale(1)                          updates use gradients of that many steps ago
    local(16)                         parameters are averaged every 16 steps, and differ in between
    local(16,workers=8)               of 8 logical workers, who share the shards of a batch evenly
    local(16,outer=nesterov:0.7:0.9)  an outer optimizer (learning rate, momentum) steps instead (DiLoCo)

"Worker" is logical here: how many there are is numerics, and one process can be all of them. Where a shell minds
parentheses, stale:1 and local:16:workers=8 say the same.

Sources: stale synchronous parallel, Ho et al. 2013; local SGD, Stich 2019; DiLoCo, Douillard et al. 2023.
"""

import re
from dataclasses import dataclass

from samestep.errors import PlanRefused

EXACT = "exact"
FORM = re.compile(r"(stale|local)[(:](.*?)\)?$")


@dataclass(frozen=True)
class Stale:
    """An update of step t uses the gradients of step t - steps."""

    steps: int

    def __str__(self) -> str:
        return f"stale({self.steps})"


@dataclass(frozen=True)
class Nesterov:
    """SGD with Nesterov momentum, on what the workers have moved away from the last common parameters."""

    lr: float
    momentum: float

    def __str__(self) -> str:
        return f"nesterov:{self.lr}:{self.momentum}"


@dataclass(frozen=True)
class Local:
    """Every logical worker takes `steps` steps of its own, then their parameters are brought together."""

    steps: int
    workers: int | None = None  # logical ones; None: one for every shard
    outer: Nesterov | None = None  # None: the mean

    def __str__(self) -> str:
        words = [str(self.steps)]
        words += [] if self.workers is None else [f"workers={self.workers}"]
        words += [] if self.outer is None else [f"outer={self.outer}"]
        return f"local({','.join(words)})"

    def num_workers(self, shards: int) -> int:
        return shards if self.workers is None else self.workers


Policy = Stale | Local


def parse_policy(text: str, source: str = "--sync") -> Policy | None:
    """The policy that `text` spells; None for exact, which stale(0) is too. Raises PlanRefused, naming `source`."""
    if text == EXACT:
        return None
    form = FORM.match(text)
    if form is None:
        raise PlanRefused(f"{source} {text!r} is not known: it is exact, stale(STEPS) or local(STEPS)")
    head, *options = re.split(r"[,:](?=[a-z]+=)|,", form[2])
    steps = _number(head, text, source)
    if form[1] == "stale":
        if options:
            raise PlanRefused(f"{source} {text!r}: stale has no option {options[0]!r}; write stale({head})")
        if steps < 0:
            raise PlanRefused(f"{source} {text!r}: an update cannot use gradients of the future; give 0 or more steps")
        return Stale(steps) if steps else None
    if steps < 1:
        raise PlanRefused(f"{source} {text!r}: workers that never take a step never meet; give at least 1 step")
    workers, outer = _options(options, text, source)
    return Local(steps, workers, outer)


def check_policy(policy: Policy | None, shards: int, source: str = "--sync") -> None:
    """Raises PlanRefused where the logical workers cannot share the shards evenly."""
    if not isinstance(policy, Local) or policy.workers is None:
        return
    if not 1 <= policy.workers <= shards or shards % policy.workers:
        raise PlanRefused(
            f"{source} {policy}: {policy.workers} logical workers cannot share the {shards} shards of a batch evenly: "
            f"give a number that divides {shards}, or set --shards"
        )


def _options(words: list[str], text: str, source: str) -> tuple[int | None, Nesterov | None]:
    workers, outer = None, None
    for word in words:
        name, _, value = word.partition("=")
        if name == "workers":
            workers = _number(value, text, source)
        elif name == "outer":
            outer = _nesterov(value, text, source)
        else:
            raise PlanRefused(f"{source} {text!r}: {word!r} is no option of local: it has workers=N and outer=...")
    return workers, outer


def _nesterov(value: str, text: str, source: str) -> Nesterov:
    kind, *numbers = value.split(":")
    try:
        lr, momentum = map(float, numbers or ("0.7", "0.9"))
    except ValueError:
        lr = momentum = -1.0
    if kind != "nesterov" or not lr > 0 or not 0 <= momentum < 1:
        raise PlanRefused(
            f"{source} {text!r}: the outer optimizer is nesterov, or nesterov:LR:MOMENTUM with LR above 0 and MOMENTUM "
            "from 0 up to 1; without one, parameters are averaged"
        )
    return Nesterov(lr, momentum)


def _number(word: str, text: str, source: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise PlanRefused(f"{source} {text!r}: {word!r} is no whole number of steps or workers") from None

"""A plan says who computes and keeps what: numerics, and an assignment of the shards to workers."""

import tomllib
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from samestep.errors import PlanRefused
from samestep.numerics import Numerics, parse_line

TRANSPORTS = ("processes", "threads")


@dataclass(frozen=True)
class Plan:
    """Frozen, and stable as text: `Plan.parse(str(plan)) == plan`.

    `assign[w]` is the number of consecutive shards that worker w computes.
    """

    numerics: Numerics
    assign: tuple[int, ...]
    transport: str = "processes"

    def __post_init__(self) -> None:
        if not self.assign or any(count < 0 for count in self.assign):
            raise PlanRefused(f"the assignment {spell(self.assign)} has no worker or a negative share")
        if sum(self.assign) != self.numerics.shards:
            raise PlanRefused(
                f"the assignment {spell(self.assign)} gives out {sum(self.assign)} shards, the batch has "
                f"{self.numerics.shards}: change --assign, or set --shards {sum(self.assign)} "
                "(the number of shards is part of the numbers)"
            )
        if self.transport not in TRANSPORTS:
            raise PlanRefused(f"unknown transport {self.transport!r} (known: {', '.join(TRANSPORTS)})")

    @property
    def workers(self) -> int:
        return len(self.assign)

    def shards_of(self, rank: int, num_shards: int) -> range:
        """The shards of worker `rank` in a step that has `num_shards` shards."""
        ends = list(accumulate(self.assign, initial=0))
        return range(min(ends[rank], num_shards), min(ends[rank + 1], num_shards))

    def __str__(self) -> str:
        return (
            "# a samestep plan: who computes what. Edit it and give it back with --plan FILE.\n"
            f'numerics = "{self.numerics.line()}"\n'
            f"assign = [{', '.join(map(str, self.assign))}]  # shards per worker\n"
            f'transport = "{self.transport}"\n'
        )

    @staticmethod
    def parse(text: str, source: str = "plan") -> "Plan":
        """Read a plan's text. Raises PlanRefused with the place of what is wrong."""
        fields = parse_fields(text, source)
        known = parse_line(fields["numerics"], source)
        return Plan(Numerics(**known), tuple(fields["assign"]), fields["transport"])  # type: ignore[arg-type]


def parse_fields(text: str, source: str) -> dict[str, Any]:
    """The fields of a plan's text, checked for presence and type, not yet for sense."""
    try:
        fields = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanRefused(f"{source} is not a plan: {error}; print(report.plan) shows one") from None
    fields.setdefault("transport", "processes")
    expected = {"numerics": str, "assign": list, "transport": str}
    if set(fields) != set(expected):
        raise PlanRefused(f"{source} has the fields {sorted(fields)}, a plan has {sorted(expected)}")
    for name, kind in expected.items():
        if not isinstance(fields[name], kind):
            raise PlanRefused(f"{source}: {name} = {fields[name]!r} is no {kind.__name__}")
    if not all(type(count) is int for count in fields["assign"]):
        raise PlanRefused(f"{source}: assign = {fields['assign']} must be a list of whole numbers")
    return fields


def equal_shares(shards: int, workers: int) -> tuple[int, ...]:
    """As equal as can be, the larger shares first."""
    return tuple(shards // workers + (w < shards % workers) for w in range(workers))


def spell(assign: tuple[int, ...]) -> str:
    return ",".join(map(str, assign)) or "(empty)"

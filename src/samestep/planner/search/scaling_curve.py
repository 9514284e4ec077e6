"""How a job scales, as values: the best plan and its step for each number of workers. The command reads them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """The best plan on the first `workers` workers."""

    workers: int
    used: int  # of them, by the plan
    kind: str
    plan: str  # its name
    seconds: float  # of a step
    parts: Mapping[str, float]  # they add up to seconds
    rows_per_second: float
    efficiency: float  # against one worker: 1.0 where n workers are n times as fast


@dataclass(frozen=True)
class Scaling:
    """Of one job on one cluster, with one set of numerics."""

    points: tuple[Point, ...]
    shards: int
    batch_size: int
    numerics: str
    cluster: str  # its fingerprint
    costs: str  # where they are from
    units: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Scaling":
        return Scaling(**{**fields, "points": tuple(Point(**point) for point in fields["points"])})

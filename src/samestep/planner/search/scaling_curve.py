"""Scaling of a job as values that the command reads: the best plan and its step for each number of workers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """The best plan on the first `workers` workers."""

    workers: int
    used: int  # by the plan, of these
    kind: str
    plan: str  # the plan's name
    seconds: float  # of a step
    parts: Mapping[str, float]  # they add up to seconds
    rows_per_second: float
    efficiency: float  # against one worker: 1.0 where n workers are n times as fast


@dataclass(frozen=True)
class Scaling:
    """The scaling of one job on one cluster, with one set of numerics."""

    points: tuple[Point, ...]
    shards: int
    batch_size: int
    numerics: str
    cluster: str  # its fingerprint
    costs: str  # their source
    units: int

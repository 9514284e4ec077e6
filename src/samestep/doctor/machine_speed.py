"""What was measured on a machine, as plain values; `measure_speed.py` measures it, in a process that has torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samestep.plan.link_times import LinkTimes


@dataclass(frozen=True)
class MachineSpeed:
    """copy: bytes copied per second. products: FLOP/s of a float32 matrix product. Each with one thread, and with all.

    isa: the instruction set that torch's kernels use. links: between two workers of this machine.
    gpus: their names, memory and such.
    """

    isa: str
    threads: int  # that "all" stands for
    mkl: bool
    onednn: bool
    copy: float
    copy_all: float
    products: float
    products_all: float
    links: LinkTimes
    gpus: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "MachineSpeed":
        links = LinkTimes.from_json(fields["links"])
        return MachineSpeed(**{**fields, "links": links, "gpus": tuple(fields["gpus"])})

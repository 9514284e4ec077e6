"""The spec of a contender, which its process reads from stdin. Free of torch."""

import json
import sys
from dataclasses import dataclass
from typing import Any

from samestep.launch.request.request import Request
from samestep.system.processes import die_with_parent

OURS = "samestep"
PEERS = ("plain", "ddp", "fsdp2", "tp", "pp")


@dataclass(frozen=True)
class ContenderSpec:
    """Kind and job of a contender. size: workers, or threads of a plain loop."""

    kind: str  # OURS, or one of PEERS
    size: int
    request: Request  # for ours with the text of its plan; for others only the job and its numerics count

    def message(self, parent: int) -> str:
        return json.dumps({"kind": self.kind, "size": self.size, "request": self.request.as_json(), "parent": parent})


def read_spec() -> ContenderSpec:
    """The spec in `message`. From here on, this process dies with the one that started it."""
    message: dict[str, Any] = json.load(sys.stdin)
    die_with_parent(message["parent"])
    return ContenderSpec(message["kind"], message["size"], Request.from_json(message["request"]))

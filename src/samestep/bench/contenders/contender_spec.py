"""What a contender is to be, as its process hears it on stdin. Free of torch."""

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
    """What a contender is. size: workers, or of a plain loop threads."""

    kind: str  # OURS, or one of PEERS
    size: int
    request: Request  # of ours with the text of its plan; of the others only the job and its numerics count

    def message(self, parent: int) -> str:
        return json.dumps({"kind": self.kind, "size": self.size, "request": self.request.as_json(), "parent": parent})


def hear() -> ContenderSpec:
    """What `message` said. From here on, this process dies with the one that started it."""
    said: dict[str, Any] = json.load(sys.stdin)
    die_with_parent(said["parent"])
    return ContenderSpec(said["kind"], said["size"], Request.from_json(said["request"]))

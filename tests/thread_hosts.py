"""Layouts of workers on hosts that threads of one process pretend to be on.

(2, 2)        [0 1] [2 3]            two hosts swap sums
(1, 2, 1)     [0] [1 2] [3]          three: each sums a part and tells the others
(1, 1)        [0] [1]
(1, 3)        [0] [1 2 3]
(2, 1, 2, 1)  [0 1] [2] [3 4] [5]    six workers, four hosts
"""

from typing import Any

LAYOUTS = [(2, 2), (1, 2, 1), (1, 1), (1, 3), (2, 1, 2, 1)]


def on(*hosts: int) -> dict[str, Any]:
    """The options of `samestep.train` for so many workers on each host."""
    return {"workers": sum(hosts), "hosts": hosts, "transport": "threads"}

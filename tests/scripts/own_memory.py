"""`samestep train` as a worker with a GPU runs it, with the CPU's memory in the place of the GPU's.

Each worker has a memory of its own, and what it sends is staged in another one.
"""

import os
import sys
from typing import Any

from samestep.cli import main
from samestep.launch.hosts import join_run, membership
from samestep.launch.request.request import Request
from samestep.transport.staged_links import StagedLinks


def as_with_a_gpu() -> None:
    shared, links_of = membership.host_identity, join_run.links_of

    def links(found: membership.Membership, request: Request, **options: Any) -> StagedLinks:
        return StagedLinks(links_of(found, request, **options))

    membership.host_identity = lambda: f"{shared()} {os.getpid()}"  # what own_facts tells of a worker with a GPU
    join_run.links_of = links


if __name__ == "__main__":
    as_with_a_gpu()
    main(["train", *sys.argv[1:]])

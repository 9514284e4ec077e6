"""Candidates of the planner on the hosts of a run: `python predict_on_hosts.py MODEL SHARDS K FILE`, as every worker.

Worker 0 writes the candidates to FILE. K is 0 if layers stay whole.
"""

import json
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from samestep.launch.environment import (
    is_pinned,
    mkl_mode,
    start_again_pinned,
    world,
)
from samestep.launch.request.request import Request

FILE = Path(__file__).with_name("job.py")


def main(model: str, shards: str, slices: str, file: str) -> None:
    if not is_pinned():
        start_again_pinned()
    from samestep.launch.hosts.agree_on_plan import decision_together
    from samestep.launch.hosts.join_run import gather, links_of

    request = Request.of(
        run=uuid.uuid4().hex[:12], file=str(FILE), settings={"model": model, "shards": int(shards)},
        slices=int(slices) or None, plan_is_asked=True, folder=str(Path.cwd()), path=tuple(sys.path), mkl=mkl_mode(),
    )  # fmt: skip
    membership = gather(world(), request)
    decision, _ = decision_together(membership, request, lambda: links_of(membership, request, "probe"))
    if membership.world.rank == 0:
        found = [
            {"name": one.name, "kind": one.kind, "plan": str(one.plan), **decision.prediction_of(one).as_json()}
            for one in decision.ranking
        ]
        Path(file).write_text(json.dumps(found))
    membership.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

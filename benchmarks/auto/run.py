"""Is `auto` with tuned numerics as fast as the best of PyTorch's own ways? `python run.py [MODEL ...]`

For each of eight models: numerics are tuned for this machine, the planner picks, and the pick takes turns with a
plain loop of one and of all threads, DDP, FSDP2 and torch's tensor parallelism, in the same run. One JSON line in
the end.
"""

import argparse
import json
import sys
import uuid
from pathlib import Path

from samestep.bench.comparison import compare
from samestep.bench.comparison_table import comparison_table
from samestep.bench.contenders.contender_spec import OURS
from samestep.bench.contestants import Contestant, peers
from samestep.bench.rounds import TimeBudget
from samestep.launch.environment import mkl_mode, physical_cores
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher

HERE = Path(__file__).resolve().parent
SUITE = ("mlp", "mlp-small", "cnn", "alexnet", "resnet", "gpt", "lstm", "bag")
WITHOUT = ("pp",)  # not asked for here; it splits few of these models


def request_for(model: str) -> Request:
    return Request.of(
        run=uuid.uuid4().hex[:12], file=str(HERE.parent / "regret" / "job.py"), settings={"model": model, "shards": 0},
        default_workers=physical_cores(), plan_is_asked=True, folder=str(Path.cwd()), path=tuple(sys.path),
        mkl=mkl_mode(),
    )  # fmt: skip


def run(model: str, seconds: float) -> dict[str, object]:
    request = request_for(model)
    with Launcher() as launcher:
        tuned = launcher.tuned(request)
        request = request.but(numerics=tuned["line"])
        pick = launcher.candidates(request)[0]
    ours = Contestant(f"{OURS} {pick['name']}", pick["plan"], pick["seconds"])
    others = [one for one in peers(physical_cores(), physical_cores()) if not one.name.startswith(WITHOUT)]
    verdict = compare([ours, *others], request, TimeBudget(seconds, None, None), say=lambda text: None)
    print(f"**{model}**: {tuned['line']}\n\n{comparison_table(verdict)}\n", flush=True)
    found = verdict.as_json()
    return {"model": model, "numerics": tuned["line"], "pick": pick["name"], "verdict": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help=f"of {', '.join(SUITE)}; default: all")
    parser.add_argument("--seconds", type=float, default=40.0, help="of turns, for each model")
    asked = parser.parse_args()
    found = [run(model, asked.seconds) for model in asked.models or SUITE]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

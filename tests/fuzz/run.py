"""Made-up networks under cut plans: `python tests/fuzz/run.py --networks 2000 [--first SEED]`.

Prints what the plans did, and each failure with what is in its network. Exit status 1 if there is one.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]

from fuzz.compared import compared  # noqa: E402
from fuzz.made_up import designed  # noqa: E402

PATIENCE = 120  # seconds for a network
THOROUGHLY = 4  # every so many networks under all plans
AT_ONCE = 20  # networks of one process, whose memory is given back with it


def looked_at(seed: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, lambda *_: os._exit(9))  # threads that wait for one another hear nothing else
    signal.alarm(PATIENCE)
    found = compared(seed, thoroughly=seed % THOROUGHLY == 0)
    signal.alarm(0)
    return {"seed": seed, "kinds": found.kinds, "texts": found.texts, "failures": found.failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where all findings go, a line each")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.networks)
    counts: dict[str, Counter[str]] = {}
    failed, began = 0, time.monotonic()
    file = None if arguments.json is None else arguments.json.open("a")
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.processes, maxtasksperchild=AT_ONCE) as pool:
        pending = [(seed, pool.apply_async(looked_at, (seed,))) for seed in seeds]
        for seed, result in pending:
            try:
                found = result.get(PATIENCE * 3)
            except multiprocessing.TimeoutError:
                found = {"seed": seed, "kinds": {"all": "no end"}, "texts": {}, "failures": {"all": "no end"}}
            for plan, kind in found["kinds"].items():
                counts.setdefault(plan, Counter())[kind] += 1
            if file is not None:
                file.write(json.dumps(found) + "\n")
                file.flush()
            if found["failures"]:
                failed += 1
                print(f"{seed}: {found['kinds']}\n  {designed(seed).said}")
                for plan, text in found["failures"].items():
                    print(f"  {plan}: {text.strip()[-300:]}", flush=True)
    for plan, kinds in counts.items():
        print(f"{plan}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    print(f"{len(seeds)} networks, {failed} of them failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

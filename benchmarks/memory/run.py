"""How much memory do two workers take? `python benchmarks/memory/run.py [MODEL ...]`.

PSS (a page shared by n processes counts 1/n for each) of all processes that train, less the PSS of
the same processes once they have imported torch and nothing else. Ours: fork server, leader and two
workers; DDP: its two ranks (the process that spawns them left out).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "step_time"))

import psutil
from rounds import Contender, machine

from models import MODELS

HERE = Path(__file__).resolve().parent
STEPS = 8


def pss(process: psutil.Process) -> int:
    """Bytes."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss for process {process.pid}")


def after_import(count: int) -> int:
    """PSS of `count` independent processes that have imported torch."""
    command = "import torch, sys; print('up', flush=True); sys.stdin.read()"
    processes = [
        subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    total = sum(pss(psutil.Process(process.pid)) for process in processes)
    for process in processes:
        process.communicate()
    return total


def training(kind: str, model: str, option: str) -> int:
    """PSS of the processes that train, after a few steps."""
    script = HERE.parent / "step_time" / "contender.py"
    contender = Contender(kind, [sys.executable, str(script), kind, model, option], Path(tempfile.mkdtemp()))
    contender.start()
    try:
        contender.round(STEPS)
        children = psutil.Process(contender.process.pid).children(recursive=True)
        trackers = [c for c in children if "resource_tracker" in " ".join(c.cmdline())]
        return sum(pss(child) for child in children if child not in trackers)
    finally:
        contender.stop()


def main(models: list[str]) -> None:
    print(machine(), "\n")
    print("| model | parameters, MB | samestep 2 workers, MB | DDP 2 ranks, MB | DDP - (parameters + momentum) + 5 % |")
    print("|---|--:|--:|--:|--:|")
    one, two = after_import(1), after_import(2)
    for model in models or ["mlp", "cnn", "gpt", "alexnet"]:
        copy = sum(p.numel() * p.element_size() for p in MODELS[model][0]().parameters())
        ours = training("samestep", model, "2:2") - one
        ddp = training("ddp", model, "2") - two
        bar = (ddp - 2 * copy) * 1.05
        print(f"| {model} | {copy / 1e6:.1f} | {ours / 1e6:.0f} | {ddp / 1e6:.0f} | {bar / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

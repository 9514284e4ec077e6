"""How long until the first step is done? `python benchmarks/start/run.py`.

Wall-clock from the start of the command to the end of the first optimizer step, in rounds that take
turns: `samestep train` with two workers, a bare script that imports torch and takes the same step,
and a bare script that imports torch and does nothing. And `samestep --help`, as a whole process.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import machine, spread

ROUNDS = 9
HERE = Path(__file__).resolve().parent
BARE = """
import sys; sys.path.insert(0, {folder!r})
import torch
from models import MODELS, optimizer
build, data, loss, batch = MODELS["mlp"]
x, y = data()
model = build(); opt = optimizer(list(model.parameters()))
loss(model(x[:batch]), y[:batch]).backward(); opt.step()
import time; print(time.time())
"""
IMPORT = "import torch, time; print(time.time())"


def first_step_of_samestep() -> float:
    with tempfile.NamedTemporaryFile() as mark:
        began = time.time()
        command = [sys.executable, "-m", "samestep", "train", str(HERE / "job.py"), "--workers", "2", "--steps", "1"]
        subprocess.run([*command, "--quiet", "--set", f"mark={mark.name}"], check=True)
        return float(Path(mark.name).read_text()) - began


def script(text: str) -> float:
    began = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True, env=environment)
    return float(result.stdout) - began


def help_page() -> float:
    began = time.time()
    subprocess.run([str(Path(sys.executable).parent / "samestep"), "--help"], check=True, capture_output=True)
    return time.time() - began


def main() -> None:
    contenders = {
        "samestep train, 2 workers, to the end of step 1": first_step_of_samestep,
        "bare script, to the end of step 1": lambda: script(BARE.format(folder=str(HERE.parent))),
        "bare script, import torch": lambda: script(IMPORT),
        "samestep --help": help_page,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            seconds[name].append(contender())
    print(machine(), "\n\n| what | seconds |\n|---|--:|")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values, lambda s: f'{s:.2f}')} |")
    ours, *bare, _ = seconds.values()
    for name, values in zip(list(seconds)[1:3], bare, strict=True):
        more = statistics.median(a - b for a, b in zip(ours, values, strict=True))
        print(f"\nsamestep takes {more:+.2f} s against: {name}")


if __name__ == "__main__":
    main()

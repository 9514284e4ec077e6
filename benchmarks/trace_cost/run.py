"""What does it cost to record every action with its times? `python benchmarks/trace_cost/run.py [--workers 2]`.

Rounds come in pairs, one with the ring and one with a ring that keeps nothing, in the same processes and in turns
(with-without, without-with, ...). Prints one JSON line at the end.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rounds import WARM, machine, spread

import samestep
from models import MODELS, optimizer
from samestep.trace.timesheet import Ring

SHARDS, ROWS_PER_SHARD, EVER = 4, 2, 10**9  # rows: as few as a shard of an MLP can have and still be a batch


class NoRing:
    """A ring that keeps nothing."""

    def add(self, step: int, action: Any, start: float, stop: float, waited: float) -> None:
        pass


def job() -> samestep.Job:
    build, data, loss, _ = MODELS["mlp"]
    torch.manual_seed(0)
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=SHARDS * ROWS_PER_SHARD, shards=SHARDS,
        steps=EVER,
    )  # fmt: skip


def measure(rounds: int, steps: int) -> None:
    """One worker's part; worker 0 prints."""
    with samestep.Trainer(job) as trainer:
        sheet = trainer._training.executor.transport.timesheet  # where the ring is
        rings: dict[str, Any] = {"with": Ring(), "without": NoRing()}
        medians: dict[str, list[float]] = {"with": [], "without": []}
        for number in range(rounds + 1):  # the first one warms up
            for name in sorted(rings, reverse=bool(number % 2)):
                sheet.ring = rings[name]
                seconds = []
                for _ in range(steps + WARM):
                    began = time.perf_counter()
                    trainer.step()
                    seconds.append(time.perf_counter() - began)
                medians[name].append(statistics.median(seconds[WARM:]))
        if trainer.rank == 0:
            report(trainer.size, {name: own[1:] for name, own in medians.items()}, rings["with"])


def report(workers: int, medians: dict[str, list[float]], ring: Ring) -> None:
    ratios = [a / b for a, b in zip(medians["with"], medians["without"], strict=True)]
    events = list(ring)
    per_step = statistics.median(sum(e.step == step for e in events) for step in {e.step for e in events[-2000:]})
    add, step = seconds_to_add(events[-1].action), statistics.median(medians["without"])
    print(f"{machine()}\n")
    for name, own in medians.items():
        print(f"{name} the ring: {spread(own, lambda s: f'{s * 1e3:.3f}')} ms per step")
    print(f"ratio by pairs of rounds: {spread(ratios, lambda r: f'{r:.4f}')}")
    print(f"{per_step:.0f} events per step at {add * 1e9:.0f} ns: {per_step * add / step:.3%} of the step, by counting")
    found = {
        "workers": workers,
        "step_seconds": step,
        "ratio": statistics.median(ratios),
        "events_per_step": per_step,
        "seconds_per_event": add,
        "share_by_counting": per_step * add / step,
    }
    print(json.dumps(found), flush=True)


def seconds_to_add(action: Any, count: int = 200_000) -> float:
    """A loop around `Ring.add`, less the same loop around one that keeps nothing."""
    spent = []
    for ring in (Ring(), NoRing()):
        began = time.perf_counter()
        for number in range(count):
            ring.add(number, action, 0.5 + number, 1.0 + number, 0.0)
        spent.append(time.perf_counter() - began)
    return (spent[0] - spent[1]) / count


def start(workers: int, rounds: int, steps: int) -> None:
    """Start one process per worker, with the variables that torchrun sets."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port = end.getsockname()[1]
    meet = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--worker", "--rounds", str(rounds), "--steps", str(steps)]
    started = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **meet, "RANK": str(rank)})
        for rank in range(workers)
    ]
    sys.exit(max(process.wait() for process in started))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="per round")
    parser.add_argument("--worker", action="store_true", help="be one of the workers")
    asked = parser.parse_args()
    if asked.worker or asked.workers == 1:
        measure(asked.rounds, asked.steps)
    else:
        start(asked.workers, asked.rounds, asked.steps)

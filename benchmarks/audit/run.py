"""What do audits, the watch and the ledger cost? `python benchmarks/audit/run.py [MODEL ...] [--workers 2]`.

Rounds come in pairs, one with audits every 32 steps and one without, in the same processes and in turns
(with-without, without-with, ...); the ratio is taken pair by pair. Also prints what a
fingerprint costs per MB. One JSON line per model.
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
from samestep.audit.audit import Audit
from samestep.audit.fingerprint import NARROW, WIDE, blocks
from samestep.audit.ledger import Bookkeeping, Ledger
from samestep.parallel.execution.attendant import Attendants

SHARDS, EVER, EVERY = 4, 10**9, 32


class NoLedger:
    """A ledger that keeps nothing."""

    def note(self, rows: Any) -> None:
        pass


def job(model: str, rows: int) -> samestep.Job:
    build, data, loss, _ = MODELS[model]
    torch.manual_seed(0)
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=SHARDS * rows, shards=SHARDS, steps=EVER
    )


def measure(model: str, rows: int, rounds: int, steps: int) -> None:
    """One worker's part; worker 0 prints."""
    with samestep.Trainer(job, settings={"model": model, "rows": rows}, audit=EVERY, rebalance="off") as trainer:
        training = trainer._training
        attendants = {"with": training.attendants, "without": Attendants()}
        audit = next((one for one in training.attendants if isinstance(one, Audit)), None)
        books = next((one for one in training.attendants if isinstance(one, Bookkeeping)), None)
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        watched = 0
        for number in range(rounds + 1):  # the first one warms up
            for name in sorted(seconds, reverse=bool(number % 2)):
                training.attendants = attendants[name]
                if audit is not None and name == "with":
                    audit.after_restore(trainer.step_number, Path())
                    audit._stepped_at = 0.0  # steps without it are no steps of its
                if books is not None:
                    books._first_step = trainer.step_number  # rows of steps without it are not in the books
                    books._ledger = Ledger(books._key) if name == "with" else NoLedger()  # type: ignore[assignment]
                for _ in range(WARM):
                    trainer.step()
                before = 0 if audit is None else audit.watched
                began = time.perf_counter()
                for _ in range(steps):
                    trainer.step()
                seconds[name].append((time.perf_counter() - began) / steps)
                if audit is not None and name == "with":
                    watched += (audit.watched - before) * (number > 0)
        if trainer.rank == 0:
            report(model, rows, trainer.size, {n: own[1:] for n, own in seconds.items()}, watched / rounds / steps)


def report(model: str, rows: int, workers: int, seconds: dict[str, list[float]], watched: float) -> None:
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    print(f"{machine()}\n\n{model}, {SHARDS} shards of {rows} rows, {workers} workers")
    for name, own in seconds.items():
        print(f"{name} audits: {spread(own, lambda s: f'{s * 1e3:.3f}')} ms per step")
    print(f"ratio by pairs of rounds: {spread(ratios, lambda r: f'{r:.4f}')}; {watched:.0%} of the steps watched")
    found = {
        "model": model,
        "workers": workers,
        "rows_per_shard": rows,
        "step_seconds": statistics.median(seconds["without"]),
        "ratio": statistics.median(ratios),
        "steps_watched": watched,
        "seconds_per_mb": {str(width): seconds_per_mb(width) for width in (NARROW, WIDE)},
    }
    print(json.dumps(found), flush=True)


def seconds_per_mb(width: int, mb: int = 64) -> float:
    data, best = torch.randn(mb << 18), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        blocks(data, width)
        best = min(best, time.perf_counter() - began)
    return best / mb


def start(workers: int, arguments: list[str]) -> int:
    """Start one process per worker, with the variables that torchrun sets."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port = end.getsockname()[1]
    meet = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **meet, "RANK": str(rank)},
        )
        for rank in range(workers)
    ]
    return max(process.wait() for process in started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["cnn", "gpt"], metavar="MODEL")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="per shard")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=64, help="per round")
    parser.add_argument("--worker", action="store_true", help="be one of the workers")
    asked: Any = parser.parse_args()
    for model in asked.models:
        if asked.worker:
            measure(model, asked.rows, asked.rounds, asked.steps)
            continue
        options = ["--rows", str(asked.rows), "--rounds", str(asked.rounds), "--steps", str(asked.steps)]
        if code := start(asked.workers, [model, *options]):
            sys.exit(code)


if __name__ == "__main__":
    main()

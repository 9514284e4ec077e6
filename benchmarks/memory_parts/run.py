"""What does a worker need for its part of a model? `python benchmarks/memory_parts/run.py [CASE ...]`.

Measured by the kernel for each worker, sampled while it trains, less the same of the idle worker, which is forked and
has its part of the plan but has allocated nothing:

    PSS      a page shared by n processes counts 1/n for each
    own      pages that no other process has. A worker inherits freed memory from the process that forked it; such
             a page is a part of the idle worker's PSS, and becomes its own only when it writes to it
    mapped   PSS of the memory that workers share: parameters, published gradients, mailboxes

Counted from the plan: parameters, gradients, optimizer state and activations of what the worker owns, and its
process; `samestep plan` shows the same numbers.

Runs have a memory limit that is never reached: each worker makes its own parts of the model, and no other
process has touched them.
"""

import json
import os
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import machine

import samestep
from models import MODELS, optimizer
from samestep.launch.request.request import Request
from samestep.launch.run import worker
from samestep.launch.run.launcher import Launcher

STEPS = 4
UNREACHED = 1 << 50  # bytes
PAUSE = 0.01  # seconds between samples

CASES = {
    f"{model}-{plan}": (model, plan, shards)
    for model, shards in (("alexnet", {"hybrid": 2, "slices": 2, "pipeline": 4, "data": 2}),
                          ("gpt-wide", {"hybrid": 4, "slices": 4, "pipeline": 4, "data": 4}),
                          ("resnet", {"pipeline": 4, "data": 4}))
    for plan, shards in shards.items()
}  # fmt: skip
"""Model, plan and number of shards by name."""


@dataclass(frozen=True)
class Usage:
    """Bytes of a process."""

    pss: int = 0
    own: int = 0
    mapped: int = 0

    @property
    def taken(self) -> int:
        return self.own + self.mapped

    def above(self, idle: "Usage") -> "Usage":
        return Usage(self.pss - idle.pss, self.own - idle.own, self.mapped - idle.mapped)


def usage(pid: int) -> Usage:
    pss = own = mapped = 0
    is_mapped = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if " " in name:  # a mapping's first line
            is_mapped = "/dev/zero" in line
        elif name == "Pss":
            pss += int(rest.split()[0]) * 1024
            mapped += is_mapped * int(rest.split()[0]) * 1024
        elif name in ("Private_Clean", "Private_Dirty") and not is_mapped:
            own += int(rest.split()[0]) * 1024
    return Usage(pss, own, mapped)


class Hold:
    """After the last step that counts, worker 0 waits until the memory of all was read; the others wait for it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def __call__(self, step: int, loss: float, metrics: object) -> None:
        if step == STEPS - 1:
            (self._folder / "trained").touch()
            wait_for(self._folder / "read")


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(PAUSE)


def job(model: str, shards: int, folder: str) -> samestep.Job:
    worker.work = partial(work_after_telling, worker.work, folder)
    build, data, loss, batch_size = MODELS[model]
    return samestep.Job(
        model=build, data=data(), loss=loss, optimizer=optimizer, batch_size=batch_size, shards=shards,
        steps=STEPS + 1, callbacks=[Hold(folder)],
    )  # fmt: skip


def work_after_telling(work, folder: str, run, rank: int, prepared, shared, transport) -> int:
    """Run a worker, after it has reported its size before any worker has begun."""
    transport.fence()
    idle = usage(os.getpid())
    transport.fence()
    unfinished = Path(folder) / f"{rank}.unfinished"
    unfinished.write_text(json.dumps([os.getpid(), *astuple(idle)]))
    unfinished.rename(Path(folder) / f"{rank}.idle")
    transport.fence()
    return work(run, rank, prepared, shared, transport)


def highest(a: Usage, b: Usage) -> Usage:
    """The largest PSS, and the parts at the time when their sum is largest."""
    most = max(a, b, key=lambda one: one.taken)
    return Usage(max(a.pss, b.pss), most.own, most.mapped)


@dataclass
class Watch:
    """Reads the workers' memory until they have trained."""

    folder: Path
    workers: int
    peaks: list[Usage] = field(default_factory=list)  # per worker, above idle

    def run(self) -> None:
        idle: list[tuple[int, Usage]] = []
        for rank in range(self.workers):
            wait_for(self.folder / f"{rank}.idle")
            pid, *known = json.loads((self.folder / f"{rank}.idle").read_text())
            idle.append((pid, Usage(*known)))
        self.peaks = [Usage()] * self.workers
        last = False
        while not last:
            last = (self.folder / "trained").exists()
            now = [usage(pid).above(before) for pid, before in idle]
            self.peaks = [highest(*pair) for pair in zip(self.peaks, now, strict=True)]
            time.sleep(PAUSE)
        (self.folder / "read").touch()


def measured(model: str, plan: str, shards: int) -> list[Usage]:
    """The most memory that each worker had at one time."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder), 2)
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        settings = {"model": model, "shards": shards, "folder": folder}
        samestep.train(job, settings=settings, workers=2, plan=plan, memory_limit=UNREACHED)
        thread.join()
    return watch.peaks


def counted(model: str, plan: str, shards: int) -> list[dict[str, int]]:
    """Bytes per worker, by purpose."""
    request = Request.of(
        run=uuid.uuid4().hex[:12], file=__file__, function="job",
        settings={"model": model, "shards": shards, "folder": ""}, workers=2, default_workers=2, plan=plan,
        memory_limit=UNREACHED, folder=str(Path.cwd()), path=tuple(sys.path),
    )  # fmt: skip
    with Launcher() as launcher:
        return launcher.outline(request)["memory"]


def main(cases: list[str]) -> None:
    print(machine(), "\n")
    kinds = ("parameters", "gradients", "optimizer", "activations", "workspace")
    heads = [*kinds, "counted", "own", "mapped", "own + mapped", "PSS"]
    print(f"| case | worker | {' | '.join(f'{head}, MB' for head in heads)} | own + mapped / counted | PSS / counted |")
    print(f"|---|--:|{'--:|' * (len(heads) + 2)}")
    for case in cases or list(CASES):
        found, needs = measured(*CASES[case]), counted(*CASES[case])
        for rank, (peak, need) in enumerate(zip(found, needs, strict=True)):
            total = sum(need.values())
            values = [*(need[kind] for kind in kinds), total, peak.own, peak.mapped, peak.taken, peak.pss]
            print_row(case, str(rank), [f"{value / 1e6:.1f}" for value in values], peak, total)
        both = Usage(*(sum(parts) for parts in zip(*map(astuple, found), strict=True)))
        total = sum(sum(need.values()) for need in needs) - seen_twice(CASES[case][0], needs)
        values = [total, both.own, both.mapped, both.taken, both.pss]
        print_row(case, "host", [*[""] * len(kinds), *(f"{value / 1e6:.1f}" for value in values)], both, total)


def seen_twice(model: str, needs: list[dict[str, int]]) -> int:
    """Bytes of parameters that both workers use: the host has one copy."""
    once = sum(param.nbytes for param in MODELS[model][0]().parameters())
    return sum(need["parameters"] for need in needs) - once


def print_row(case: str, who: str, texts: list[str], peak: Usage, counted: int) -> None:
    ratios = [f"{peak.taken / counted:.3f}", f"{peak.pss / counted:.3f}"]
    print(f"| {case} | {who} | {' | '.join([*texts, *ratios])} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

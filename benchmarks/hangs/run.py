"""Does a run that hangs name who holds it up? `python run.py [KIND ...] [--runs N] [--limit SECONDS]`.

Every run is real: the command, or a script as several processes, or workers on two hosts (network namespaces, root);
real signals, sleeping, locks, control groups, a link that is taken down. One worker goes wrong at one step. A run is
right when the first sentence names kind, worker and place within the limit, counted from where it went wrong.

`python run.py --quiet MINUTES`: jobs that make progress, with four workers per core, and how many stalls were reported.

One JSON line in the end.
"""

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from commands import free_port
from hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "tests" / "jobs_bad" / "hanging.py"
GRIDS = ROOT / "tests" / "jobs" / "grids.py"
LOOP = ROOT / "tests" / "scripts" / "own_calls.py"
START = 60.0  # seconds until a run must have reached its fault
NOT_ENTERED = r"worker 2 has not entered action \d+, Agree\(\) of step 3; it is in hanging\.py:\d+ "
MEMORY = 1000 << 20  # bytes of the control group


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how to start a run, what to do to it, and the right sentence."""

    start: Callable[["Run"], None]
    right: str
    settings: tuple[str, ...] = ()


class Run:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.note = folder / "note"
        self.misleading = ""  # the first sentence that blamed another worker
        self.processes: list[subprocess.Popen[Any]] = []
        self.cleanup = contextlib.ExitStack()

    def popen(self, command: list[str], **options: Any) -> None:
        env = {**os.environ, "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, env=env, cwd=self.folder, **pipes, **options))

    def began(self) -> float:
        """Time of the fault."""
        return float(self.note.read_text()) if self.note.exists() else float("nan")

    def first(self, right: str) -> tuple[str, float]:
        """The first right line of any worker, else the first line that names a worker; and its time."""
        end, found, at = time.monotonic() + START + 3 * self.limit, "", float("nan")
        with selectors.DefaultSelector() as waiting:
            for process in self.processes:
                if process.stderr is not None:
                    os.set_blocking(process.stderr.fileno(), False)
                    waiting.register(process.stderr, selectors.EVENT_READ, [b""])
            while waiting.get_map() and time.monotonic() < end:
                for key, _ in waiting.select(0.5):
                    part = key.fileobj.read() or b""  # type: ignore[union-attr]
                    if not part:
                        waiting.unregister(key.fileobj)
                    key.data[0] += part
                    *lines, key.data[0] = key.data[0].split(b"\n")
                    for line in (line.decode(errors="replace") for line in lines):
                        about = re.search(r"\bworkers? \d", line) is not None and " numerics" not in line
                        if about and not found:
                            found, at = line, time.monotonic()
                        if about and re.search(right, line):
                            self.misleading = found if found != line else ""
                            return line, time.monotonic()
                if found and time.monotonic() > at + 2.0:
                    break
        return found, at

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.cleanup.close()


def command(run: Run, *more: str, **options: Any) -> None:
    settings = ("--set", f"note={run.note}", "--stall", str(run.limit), "--plan", "data", "--quiet", "--workers", "4")
    run.popen([sys.executable, "-m", "samestep", "train", str(JOB), *settings, *more], **options)


def fault(name: str, *more: str) -> Callable[[Run], None]:
    return lambda run: command(run, "--set", f"fault={name}", *more)


def loop(what: str) -> Callable[[Run], None]:
    """Start the script as three processes."""

    def start(run: Run) -> None:
        world = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(3):
            words = [sys.executable, str(LOOP), what, str(run.limit), str(run.note)]
            run.popen(words, env={**world, "RANK": str(rank)})

    return start


def exhausted(run: Run) -> None:
    """Start the run in a control group that is too small."""
    group = Path("/sys/fs/cgroup/memory") / f"samestep-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(MEMORY))
    run.cleanup.callback(remove_group, group)
    enter = group / "cgroup.procs"
    command(run, "--set", "fault=memory", preexec_fn=lambda: enter.write_text(str(os.getpid())))


def remove_group(group: Path) -> None:
    end = time.monotonic() + 20
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    group.rmdir()


def on_hosts(break_it: Callable[[Run, Any], None]) -> Callable[[Run], None]:
    """Start worker 0 on one host, 1 and 2 on another; the link breaks after some steps."""

    def start(run: Run) -> None:
        hosts = run.cleanup.enter_context(Hosts(2))
        settings = ("fault=sleepless", "pace=0.02", f"note={run.note}")
        words = [sys.executable, "-m", "samestep", "train", str(JOB), "--stall", str(run.limit), "--plan", "data"]
        words += ["--quiet", "--epochs", "500", *(word for text in settings for word in ("--set", text))]
        env = {"TMPDIR": str(run.folder)}
        run.processes += hosts.start_workers((1, 2), words, free_port(), env, stderr=subprocess.PIPE, cwd=run.folder)
        end = time.monotonic() + START
        while not run.note.exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1.0)
        run.note.write_text(repr(time.monotonic()))
        break_it(run, hosts)

    return start


def frozen(run: Run, hosts: Any) -> None:
    hosts[1].link_down()


def stopped_there(run: Run, hosts: Any) -> None:
    os.kill(run.processes[2].pid, signal.SIGSTOP)


CALLS = r"Disagreement: worker \d is in {0} and meets worker \d, which is in {1}|Disagreement: worker \d is in {1} and "
CALLS += r"meets worker \d, which is in {0}"
KINDS = {
    "late": Kind(fault("late in data"), NOT_ENTERED + r"__getitem__, asleep in \w+ for"),
    "dead": Kind(fault("dead"), "^worker 2 was killed by SIGKILL at step 3"),
    "stopped": Kind(fault("stopped"), r"^worker 2 is stopped by a signal, in Forward.* of step 3"),
    "stopped on another host": Kind(on_hosts(stopped_there), r"^worker 2 on host \S+ is stopped by a signal"),
    "frozen link": Kind(on_hosts(frozen), "the link between (the two hosts|their hosts) is down"),
    "exception": Kind(fault("exception"), "^worker 2 failed at step 3: ValueError: row 57 is torn"),
    "branch divergence": Kind(loop("branch"), CALLS.format("evaluate after step 4", "Agree of step 4")),
    "call under if rank": Kind(loop("under if"), CALLS.format("digest after step 4", "Agree of step 4")),
    "swapped order": Kind(loop("swapped"), CALLS.format("digest after step 4", "evaluate after step 4")),
    "uneven batches": Kind(loop("uneven"), "worker 2 on host .* come to the end of its script, after step 4"),
    "lingers": Kind(loop("lingers"), r"^worker 2 .* it is in no call of its trainer, .* own_calls\.py:\d+ main"),
    "loader stuck": Kind(
        fault("late in data", "--set", "loaders=1"),
        r"^worker 2 waits for its loader process \d+, which is in hanging\.py:\d+ __getitem__, asleep",
    ),
    "lock held": Kind(fault("lock"), NOT_ENTERED + "never, waiting for a lock for"),
    "interpreter's lock held": Kind(fault("native lock"), NOT_ENTERED + "native_lock, waiting for a lock for"),
    "native code computes": Kind(fault("native loop"), NOT_ENTERED + "native_loop, running for"),
    "memory exhausted": Kind(exhausted, "^worker 2 was killed by SIGKILL at step 3: the memory of its control group"),
    "slow x10": Kind(
        fault("slow", "--rebalance", "off", "--set", "pace=0.05", "--set", "step=31", "--set", "steps=2000"),
        "^worker 2 is slow, in .*a step takes it .* of its own and took it",
    ),
}


def once(name: str, limit: float) -> dict[str, Any]:
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), limit)
        try:
            kind.start(run)
            line, at = run.first(kind.right)
            seconds = at - run.began()
        finally:
            run.close()
        right = re.search(kind.right, line) is not None
        line = line.replace(folder, "/tmp")
    return {"kind": name, "right": right, "in time": right and seconds <= limit, "seconds": seconds, "line": line,
            "misleading": run.misleading}  # fmt: skip


MOVING = (
    (f"{JOB}:job", ("--set", "pace=0.02", "--set", "shards=8", "--epochs", "20")),
    (f"{GRIDS}:cnn", ("--steps", "400")),
    (f"{GRIDS}:gpt", ("--steps", "400")),
    (f"{GRIDS}:mlp", ("--steps", "2000")),
)


def quiet(minutes: float, limit: float) -> dict[str, Any]:
    """Run jobs in turn with four workers per core, and count alarms."""
    end, alarms, runs = time.monotonic() + 60 * minutes, list[str](), 0
    workers = 4 * len(os.sched_getaffinity(0))
    for job, options in turns(end):
        words = [sys.executable, "-m", "samestep", "train", job, *options, "--workers", str(workers), "--shards",
                 str(workers), "--plan", "data", "--stall", str(limit), "--quiet"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ})
        alarms += [line for line in done.stderr.splitlines() if "; stacks in " in line]
        runs += 1
        print(f"{job.rpartition(':')[2]}: exit status {done.returncode}, {len(alarms)} alarms so far", file=sys.stderr)
    return {"minutes": minutes, "limit": limit, "workers": workers, "runs": runs, "alarms": alarms}


def turns(end: float) -> Iterator[tuple[str, tuple[str, ...]]]:
    while True:
        for one in MOVING:
            if time.monotonic() > end:
                return
            yield one


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--limit", type=float, default=4.0)
    parser.add_argument("--quiet", type=float, metavar="MINUTES")
    asked = parser.parse_args()
    if asked.quiet:
        print(json.dumps(quiet(asked.quiet, asked.limit)))
        return
    found = []
    print("| kind | right | in time | seconds | its sentence |\n|---|--:|--:|--:|---|")
    for name in asked.kinds or KINDS:
        runs = [once(name, asked.limit) for _ in range(asked.runs)]
        found += runs
        spent = sorted(run["seconds"] for run in runs)
        print(
            f"| {name} | {sum(r['right'] for r in runs)} of {len(runs)} | {sum(r['in time'] for r in runs)} | "
            f"{spent[0]:.2f}-{spent[-1]:.2f} | {next((r['line'] for r in runs if r['right']), runs[0]['line'])} |",
            flush=True,
        )
        for run in runs:
            if run["misleading"]:
                print(f"  said before: {run['misleading']}", file=sys.stderr)
            if not run["in time"]:
                print(f"  not right in time: {run['seconds']:.2f} s: {run['line']}", file=sys.stderr)
    print(json.dumps({"limit": asked.limit, "runs": found}))


if __name__ == "__main__":
    main()

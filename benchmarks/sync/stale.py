"""How much of the exchange does stale(1) hide? AlexNet, data parallel on two hosts: `python benchmarks/sync/stale.py`.

Three contenders take turns, with one worker on each of two test hosts (tests/hosts.py; needs root):

    exact       a step waits for its own gradients
    stale(1)    it waits for those of the step before
    nothing     exact without moving gradients: computing, sums and update only (wrong numbers)

Two hidden shares, round by round: of the exchange, 1 - (stale - nothing) / wire, where wire is the time of one host's
bytes at the link's rate; and of the part that exact does not hide, since exact sends while it computes too,
1 - (stale - nothing) / (exact - nothing).

The kernel handles packets on the cores that compute; with --frames 9000 it has fewer to handle, at the same rate.
--assign 3,1: the second host has time to spare for the bytes.
Other load on the machine is measured during the run: with load, the table is worthless.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import Contender, Turns, machine, race, spread

from hosts import Hosts, run

PORTS = itertools.count(29_700)
NOTHING = "nothing"
EVER = 10**9  # steps
EPOCH = 1000  # batches
BITS = {"100mbit": 1e8, "1gbit": 1e9, "10gbit": 1e10}  # per second


class Again:
    """A data set of any number of rows that repeats a few."""

    def __init__(self, columns: Sequence[Any], length: int) -> None:
        self.columns, self.length = columns, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return tuple(column[row % len(column)] for column in self.columns)


class OnHosts(Contender):
    """One worker on each of two hosts."""

    def __init__(self, kind: str, asked: argparse.Namespace, hosts: Hosts) -> None:
        words = ["--contender", kind, "--model", asked.model, "--assign", asked.assign]
        words += ["--batch", str(asked.batch), "--shards", str(asked.shards), "--folder"]
        super().__init__(kind, [sys.executable, str(Path(__file__).resolve()), *words])
        self.hosts = hosts

    def launch(self, command: list[str]) -> "subprocess.Popen[Any]":
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {"GLOO_SOCKET_IFNAME": "eth"}}
        self.workers = self.hosts.start_workers([1, 1], command, next(PORTS), **quiet)
        return self.workers[0]

    def stop(self) -> None:
        super().stop()
        for worker in self.workers[1:]:
            worker.kill()
            worker.wait()


def contend(kind: str, model: str, batch: int, shards: int, assign: str, folder: str) -> None:
    """One worker; worker 0 takes the turns."""
    import torch

    import samestep
    from models import MODELS, images, optimizer

    if kind == NOTHING:
        move_nothing()
    build, data, loss, _ = MODELS[model]
    torch.manual_seed(0)
    columns = images(3, 224, 224, classes=1000, rows=batch) if model == "alexnet" else data()
    rows = Again(columns, EPOCH * batch)  # at an epoch's end the ledger has an exchange that nothing hides
    job = samestep.Job(
        model=build, data=rows, loss=loss, optimizer=optimizer, batch_size=batch, shards=shards, steps=EVER
    )
    shares = [int(share) for share in assign.split(",")] if assign else None
    sync = "exact" if kind == NOTHING else kind
    trainer = samestep.Trainer(job, plan="data", assign=shares, sync=sync, timeout=3600, audit=0, stall=0)
    turns, steps = Turns(folder), trainer.steps()
    next(steps)
    next(steps)
    if trainer.rank == 0:
        turns.begin()
    try:
        for _ in steps:
            if trainer.rank == 0:
                turns.step()
    except samestep.TrainingFailed:
        if trainer.rank == 0:  # rank 0 ends without a message when there are no more rounds
            raise


def move_nothing() -> None:
    """Receive zeros instead of the other host's sums, so that the numbers stay in an ordinary range."""
    from samestep.parallel.gradients.parcels import Parcel

    cleared: set[int] = set()

    def expect(parcel: Parcel, _: object) -> None:
        if id(parcel) not in cleared:
            cleared.add(id(parcel))
            for view in parcel.views:
                view.zero_()

    Parcel.expect = expect  # type: ignore[method-assign]
    for name in ("post", "wait", "unpack"):
        setattr(Parcel, name, lambda self, *_: None)


def set_frames(hosts: Hosts, nbytes: int) -> None:
    for host in hosts:
        for space, device in ((host.name, host.interface), (host._bridge, host._port)):
            run("ip", "-n", space, "link", "set", "dev", device, "mtu", str(nbytes))


def user_seconds() -> float:
    """User-mode processor time of all processes on this machine."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[1]) + int(fields[2])) / os.sysconf("SC_CLK_TCK")


def own_user_seconds() -> float:
    """User-mode processor time of this process and of its children that have ended."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime for used in both)


def hidden(stale: float, nothing: float, all_of_it: float) -> float:
    return 1 - (stale - nothing) / all_of_it


def wire_seconds(model: str, rate: str) -> float:
    """Seconds of one host's gradients at the rate of the link."""
    import torch

    from models import MODELS

    with torch.device("meta"):
        params = MODELS[model][0]().parameters()
    return 8 * sum(param.numel() * param.element_size() for param in params) / BITS[rate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet", help="of benchmarks/models.py")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--assign", default="", help="shards of each host, for example 3,1; default: as many on each")
    parser.add_argument("--frames", type=int, help="bytes of the largest one; default: as the interface has it (1500)")
    parser.add_argument("--policy", default="stale(1)")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="per round, after two that do not count")
    parser.add_argument("--json", type=Path, help="also write the medians of every round there")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender is not None:
        contend(asked.contender, asked.model, asked.batch, asked.shards, asked.assign, asked.folder)
        return
    kinds = ["exact", asked.policy, NOTHING]
    began, busy = time.perf_counter(), user_seconds() - own_user_seconds()
    with Hosts(2, rate=asked.rate) as hosts:
        if asked.frames:
            set_frames(hosts, asked.frames)
        found = {kind: OnHosts(kind, asked, hosts) for kind in kinds}
        race(list(found.values()), asked.rounds, asked.steps)
    others = (user_seconds() - own_user_seconds() - busy) / (time.perf_counter() - began)
    print(f"{machine()}; meanwhile {others:.2f} cores were busy with other work\n")
    said = f"{asked.model}, batch {asked.batch}, {asked.shards} shards {asked.assign}, two hosts, {asked.rate}"
    said += f", frames of {asked.frames or 1500} bytes; {asked.rounds} rounds of {asked.steps} steps"
    print(f"{said}\n\n| contender | step, ms |\n|---|--:|")
    for kind in kinds:
        print(f"| {kind} | {spread(found[kind].medians, lambda s: f'{s * 1e3:.0f}')} |")
    exact, stale, nothing = (found[kind].medians for kind in kinds)
    wire = wire_seconds(asked.model, asked.rate)
    rounds = list(zip(exact, stale, nothing, strict=True))
    of_all = spread([hidden(s, n, wire) for _, s, n in rounds], lambda share: f"{share:.1%}")
    of_rest = spread([hidden(s, n, e - n) for e, s, n in rounds], lambda share: f"{share:.1%}")
    print(f"\nhidden: {of_all} of the exchange, which takes {wire:.2f} s; {of_rest} of what exact leaves of it")
    if asked.json is not None:
        asked.json.write_text(json.dumps({kind: found[kind].medians for kind in kinds}) + "\n")


if __name__ == "__main__":
    main()

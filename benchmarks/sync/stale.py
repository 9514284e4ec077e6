"""How much of the exchange does stale(1) hide? AlexNet, data parallel on two hosts: `python benchmarks/sync/stale.py`.

Three contenders take turns, with one worker on each of two test hosts (tests/hosts.py; needs root):

    exact       a step waits for its own gradients
    stale(1)    it waits for those of the step before
    nothing     exact, and no gradient moves: what is left is computing, sums and update included (wrong numbers)

What is hidden is 1 - (stale - nothing) / (exact - nothing), round by round.

Here the kernel cuts and joins packets, on the cores that compute, which a network card does by itself (segmentation and
receive offload). --card lets TCP's packets of 64 KB through whole; --frames 9000 makes larger pieces. The rate stays.
--assign 3,1: the second host has time to spare for the bytes.
While it runs, what else is busy on the machine is counted: such a table is worth nothing.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from rounds import Contender, Turns, machine, race, spread

from hosts import Hosts, run

PORTS = itertools.count(29_700)
NOTHING = "nothing"
EVER = 10**9  # steps
WHOLE = "80kb"


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
    from models import MODELS, images, optimizer

    import samestep

    if kind == NOTHING:
        move_nothing()
    build, data, loss, _ = MODELS[model]
    torch.manual_seed(0)
    rows = images(3, 224, 224, classes=1000, rows=batch) if model == "alexnet" else data()
    job = samestep.Job(
        model=build, data=rows, loss=loss, optimizer=optimizer, batch_size=batch, shards=shards, steps=EVER
    )
    shares = [int(share) for share in assign.split(",")] if assign else None
    sync = "exact" if kind == NOTHING else kind
    trainer = samestep.Trainer(job, plan="data", assign=shares, sync=sync, timeout=3600)
    turns, steps = Turns(folder), trainer.steps()
    next(steps)
    next(steps)
    if trainer.rank == 0:
        turns.begin()
    with contextlib.suppress(samestep.TrainingFailed):  # worker 0 leaves without a word
        for _ in steps:
            if trainer.rank == 0:
                turns.step()


def move_nothing() -> None:
    """What should come from the other host stays zero, so that the numbers stay ordinary ones."""
    from samestep.parallel.parcels import Parcel

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


def let_whole_packets_pass(hosts: Hosts) -> None:
    """TCP gives the link packets of up to 64 KB, which a network card cuts. A bucket that is smaller than that cuts
    them too, on the cores that compute: make it a little larger. The rate stays."""
    rate, _, latency = hosts._limit
    for host in hosts:
        for space, device in ((host.name, host.interface), (host._bridge, host._port)):
            limit = ["rate", rate, "burst", WHOLE, "latency", latency]
            run("tc", "-n", space, "qdisc", "change", "dev", device, "root", "tbf", *limit)


def user_seconds() -> float:
    """Of processor time outside of the kernel, of everybody on this machine."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[1]) + int(fields[2])) / os.sysconf("SC_CLK_TCK")


def own_user_seconds() -> float:
    """The same of this process and of its children that have ended."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime for used in both)


def hidden(exact: float, stale: float, nothing: float) -> float:
    return 1 - (stale - nothing) / (exact - nothing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet", help="of benchmarks/models.py")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--assign", default="", help="shards of each host, for example 3,1; default: as many on each")
    parser.add_argument("--frames", type=int, help="bytes of the largest one; default: as the interface has it (1500)")
    parser.add_argument("--card", action="store_true", help="packets are not cut by cores, as a network card would do")
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
        if asked.card:
            let_whole_packets_pass(hosts)
        found = {kind: OnHosts(kind, asked, hosts) for kind in kinds}
        race(list(found.values()), asked.rounds, asked.steps)
    others = (user_seconds() - own_user_seconds() - busy) / (time.perf_counter() - began)
    print(f"{machine()}; meanwhile {others:.2f} cores were busy with other work\n")
    said = f"{asked.model}, batch {asked.batch}, {asked.shards} shards {asked.assign}, two hosts, {asked.rate}"
    said += ", as with a network card that cuts packets" if asked.card else ""
    said += f", frames of {asked.frames or 1500} bytes; {asked.rounds} rounds of {asked.steps} steps"
    print(f"{said}\n\n| contender | step, ms |\n|---|--:|")
    for kind in kinds:
        print(f"| {kind} | {spread(found[kind].medians, lambda s: f'{s * 1e3:.0f}')} |")
    exact, stale, nothing = (found[kind].medians for kind in kinds)
    per_round = [hidden(*one) for one in zip(exact, stale, nothing, strict=True)]
    shown = spread(per_round, lambda share: f"{share:.1%}")
    at_medians = hidden(*(statistics.median(one) for one in (exact, stale, nothing)))
    print(f"\nhidden: {shown} by round, {at_medians:.1%} of the medians")
    if asked.json is not None:
        asked.json.write_text(json.dumps({kind: found[kind].medians for kind in kinds}) + "\n")


if __name__ == "__main__":
    main()

"""local(16) against exact steps at 100 Mbit/s: bytes, loss after equal rows, time to a loss.

    python benchmarks/sync/local.py                          # needs root, for network namespaces
    python benchmarks/sync/local.py --steps 160 --rate 1gbit --policies "exact local(16,workers=2)"
    python benchmarks/sync/local.py --one-host               # no network: the losses alone, which are the same bits

Two test hosts (tests/hosts.py) with one worker each train the same GPT once under every policy. The table has the
bytes that the transports counted, and those that left the hosts' interfaces, start and end of the run included.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from hosts import Hosts
from samestep.bench.policies_picture import policies_picture
from samestep.bench.policies_table import policies_table
from samestep.bench.policy_comparison import Course, compare_courses

HERE = Path(__file__).resolve().parent
POLICIES = "exact local(16,workers=2) local(16) local(16,workers=2,outer=nesterov:1:0.4)"
WINDOW = 50  # steps over which a training loss is averaged
PORTS = itertools.count(29_800)


def command(policy: str, steps: int, log: Path, settings: Sequence[str]) -> list[str]:
    job = [f"{HERE / 'gpt_text.py'}:job", "--set", f"steps={steps}", "--set", f"log={log}"]
    job += [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "samestep", "train", *job, "--plan", "data", "--sync", policy, "--json", "--quiet"]


def measured(policy: str, steps: int, hosts: Hosts | None, settings: Sequence[str] = ()) -> tuple[Course, int]:
    """Losses over time, and the bytes that left the interfaces."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        arguments = command(policy, steps, log, settings)
        before = 0 if hosts is None else sum(host.sent() for host in hosts)
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        if hosts is None:
            workers = [subprocess.Popen([*arguments, "--workers", "2"], **options)]
        else:
            workers = hosts.start_workers([1, 1], arguments, next(PORTS), env={"GLOO_SOCKET_IFNAME": "eth"}, **options)
        out = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise RuntimeError(f"{policy}: workers ended with {[worker.returncode for worker in workers]}")
        sent = 0 if hosts is None else sum(host.sent() for host in hosts) - before
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    report = json.loads(out[0].splitlines()[-1])
    count = len(lines)
    course = Course(
        policy,
        tuple(loss for _, loss, _ in lines),
        tuple(seconds for _, _, seconds in lines),
        report["metrics"].get("loss"),
        sum(times["moved"] for times in report["times"]) / count,
        sum(times["wired"] for times in report["times"]) / count,
        report["sync"],
    )
    return course, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=POLICIES, help="separated by spaces")
    parser.add_argument("--steps", type=int, default=1216)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--target-loss", type=float)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of gpt_text.job")
    parser.add_argument("--one-host", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for results.json and curves.svg")
    asked = parser.parse_args()
    found: list[Course] = []
    sent: dict[str, int] = {}
    policies = asked.policies.split()
    if "exact" not in policies:
        parser.error("nothing to compare with: let exact be one of --policies")
    if asked.one_host:
        for policy in policies:
            course, sent[policy] = measured(policy, asked.steps, None, asked.set)
            found.append(course)
            print(policy, "held out", course.held_out, flush=True)
    else:
        with Hosts(2, rate=asked.rate) as hosts:
            for policy in policies:
                course, sent[policy] = measured(policy, asked.steps, hosts, asked.set)
                found.append(course)
                print(policy, "held out", course.held_out, flush=True)
    window = min(WINDOW, max(1, asked.steps // 4))
    result = compare_courses(found, asked.target_loss, window)
    print(policies_table(result))
    exact = next(course for course in found if course.policy == "exact")
    for course in found:
        train = course.smoothed(window)[-1] / exact.smoothed(window)[-1] - 1
        held_out = course.held_out / exact.held_out - 1 if course.held_out and exact.held_out else float("nan")
        fewer = f"{exact.wired / course.wired:.1f}x fewer bytes counted, " if course.wired else ""
        fewer += f"{sent['exact'] / sent[course.policy]:.1f}x fewer on the wire, " if sent[course.policy] else ""
        print(f"{course.policy}: {fewer}training loss {train:+.2%}, held out {held_out:+.2%}")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        rate = "one host" if asked.one_host else f"two hosts, {asked.rate}"
        text = json.dumps({**result.as_json(), "rate": rate, "steps": asked.steps, "sent": sent}, indent=1)
        (asked.out / "results.json").write_text(text + "\n")
        (asked.out / "curves.svg").write_text(policies_picture(result, f"A GPT of 3.3 M parameters, {rate}") + "\n")


if __name__ == "__main__":
    main()

"""A run that stands still says in one sentence who holds it up and where, in time; one that moves says nothing.

Real processes, signals and links. What follows from which facts is in diagnose/test_stall.py.
"""

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import samestep
from by_hand import ByHand
from commands import Command, free_port, start_script, wait_until
from hosts import Hosts, HostsUnavailable
from samestep.errors import Refused, TrainingFailed
from samestep.launch.failure import Event
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.outcome import Outcome
from samestep.system.procfs import children

TESTS = Path(__file__).parents[1]
HANGING = TESTS / "jobs_bad" / "hanging.py"
OWN_CALLS = TESTS / "scripts" / "own_calls.py"
LIMIT = 2.0  # seconds
SLACK = 15.0  # for a machine on which other things run


class SeenEnoughError(Exception):
    """Ends a run at its first sentence."""

    def __init__(self, event: Event) -> None:
        super().__init__(event["text"])
        self.event, self.at = event, time.monotonic()


class UntilStall:
    """A watcher that leaves a run at its first stall, or at the first of one kind."""

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind
        self.step = 0.0  # when the last news came that workers are up

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "up":
            self.step = time.monotonic()
        if event["event"] == "stall" and self.kind in (None, event["kind"]):
            raise SeenEnoughError(event)


def sentence(launcher: Launcher, fault: str, **settings: Any) -> Event:
    """What is said of a job that goes wrong in worker 2 of 4; in time, and with its stacks in a private file."""
    workers, begins = settings.pop("workers", 4), settings.pop("begins", 0.0)
    watcher = UntilStall(settings.pop("kind", None))
    with pytest.raises(SeenEnoughError) as seen:
        samestep.train(
            f"{HANGING}:job", settings={"fault": fault, **settings}, workers=workers, plan="data", stall=LIMIT,
            launcher=launcher, watcher=watcher,
        )  # fmt: skip
    assert seen.value.at - watcher.step < begins + LIMIT + SLACK
    event = dict(seen.value.event)
    event["text"], event["stacks"] = without_file(event["text"])
    return event


def without_file(text: str) -> tuple[str, str]:
    """The sentence, and what is in the file that it names; the file is removed."""
    text, _, name = text.partition("; stacks in ")
    path = Path(name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    path.unlink()
    return text, content


HAS_NOT = r"worker 2 has not entered action \d+, Agree\(\) of step 3; it is in hanging\.py:\d+ "
WAIT = "; workers 0, 1, 3 wait for it"
HELD = {
    "late": ("idle", HAS_NOT + r"late, asleep in \w+ for \d+ s"),
    "late in data": ("idle", HAS_NOT + r"__getitem__, asleep in \w+ for \d+ s"),
    "running": ("running", HAS_NOT + r"long_loop, running for \d+ s"),
    "native loop": ("running", HAS_NOT + r"native_loop, running for \d+ s"),
    "lock": ("lock held", HAS_NOT + r"never, waiting for a lock for \d+ s"),
    "native lock": ("lock held", HAS_NOT + r"native_lock, waiting for a lock for \d+ s"),
    "stopped": (
        "stopped",
        r"worker 2 is stopped by a signal, in Forward\(shard=2, segment=0\) of step 3, for \d+ s; `kill -CONT \d+` "
        "lets it go on",
    ),
}


@pytest.mark.parametrize("fault", HELD)
def test_what_holds_up_a_run_is_said_in_one_sentence(launcher: Launcher, fault: str) -> None:
    kind, pattern = HELD[fault]
    event = sentence(launcher, fault)
    assert event["kind"] == kind
    assert re.fullmatch(pattern + WAIT, event["text"]), event["text"]
    assert not event["ends"]
    for rank in (0, 1, 3):
        assert f"worker {rank}, process " in event["stacks"]
    if fault != "stopped":  # which cannot answer
        assert "hanging.py" in event["stacks"]


@pytest.mark.parametrize(
    ("fault", "does"),
    [
        ("late in data", r"is in hanging\.py:\d+ __getitem__, asleep in \w+"),
        ("loader stopped", r"is stopped by a signal \(`kill -CONT \d+` lets it go on\)"),
    ],
)
def test_a_loader_that_is_stuck_is_named_with_its_worker(launcher: Launcher, fault: str, does: str) -> None:
    # On a busy machine the loaders' own start may hold up a step before.
    event = sentence(launcher, fault, loaders=1, kind="loader stuck", begins=30.0)
    pattern = rf"worker 2 waits for its loader process \d+, which {does}, in Load\(\) of step \d, for \d+ s"
    assert re.fullmatch(pattern + WAIT, event["text"]), event["text"]


def test_a_worker_that_takes_ten_times_as_long_as_before_is_named(launcher: Launcher) -> None:
    event = sentence(launcher, "slow", pace=0.03, step=31, steps=1000, workers=2, begins=2.0)
    assert event["kind"] == "slow"
    assert re.match(
        r"worker 1 is slow, in .* of step \d+: a step takes it \d+ ms of its own and took it", event["text"]
    )


def test_one_worker_alone_that_sleeps_is_named_though_nobody_waits(launcher: Launcher) -> None:
    event = sentence(launcher, "late", workers=1)
    assert event["text"].startswith("worker 0 has not come through Forward(shard=2, segment=0) of step 3; it is in ")


class Texts:
    """A watcher that keeps what is said of stalls."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "stall":
            self.events.append(event)


def test_a_job_that_moves_raises_no_alarm_with_four_times_as_many_workers_as_cores(launcher: Launcher) -> None:
    """Many steps of this job take longer than it may stand still: what counts is that it moves."""
    seen, cores = Texts(), len(os.sched_getaffinity(0))
    samestep.train(
        f"{HANGING}:job", settings={"pace": 0.02, "shards": 4 * cores}, workers=4 * cores, plan="data", steps=30,
        stall=3.0, launcher=launcher, watcher=seen,
    )  # fmt: skip
    assert seen.events == []


def test_nobody_looks_when_it_is_not_wanted(launcher: Launcher) -> None:
    seen = Texts()
    settings = {"fault": "slow", "pace": 0.02, "step": 2}
    options: Any = {"workers": 2, "plan": "data", "launcher": launcher, "watcher": seen}
    samestep.train(f"{HANGING}:job", settings=settings, steps=6, stall=0, **options)
    assert seen.events == []
    with pytest.raises(Refused, match=r"--stall -1: it must be a number of seconds, or 0"):
        samestep.train(f"{HANGING}:job", stall=-1, **options)


@pytest.mark.parametrize("fault", ["exception", "dead"])
def test_what_ends_by_itself_is_told_as_ever(launcher: Launcher, fault: str) -> None:
    seen = Texts()
    with pytest.raises(TrainingFailed) as caught:
        samestep.train(
            f"{HANGING}:job", settings={"fault": fault}, workers=4, plan="data", stall=LIMIT, launcher=launcher,
            watcher=seen,
        )  # fmt: skip
    assert re.match("worker 2 (failed at step 3: ValueError|was killed by SIGKILL at step 3)", str(caught.value))
    assert seen.events == []


def test_what_no_waiting_ends_is_the_runs_failure() -> None:
    outcome = Outcome()
    text = "workers 0, 1 wait for one another and always will"
    outcome.take({"event": "stall", "text": "worker 2 is stopped", "kind": "stopped", "ends": False}, [])
    outcome.take({"event": "stall", "text": text, "kind": "deadlock by order", "ends": True}, [])
    outcome.take({"event": "gone", "rank": 0, "code": -9, "step": 3}, [])
    with pytest.raises(TrainingFailed, match=text):
        outcome.conclude()


# -------------------------------------------------------------------------------------- through the real command


def said(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "; stacks in " in line]


def test_the_command_says_it_once_and_that_it_goes_on_and_trains_to_the_end(tmp_path: Path) -> None:
    """With --quiet too. What was said in vain is no failure."""
    command = Command(tmp_path)
    errors = tmp_path / "stderr"
    options = (
        "--set",
        "fault=stopped",
        "--set",
        "pace=0.05",
        "--workers",
        4,
        "--stall",
        1,
        "--plan",
        "data",
        "--quiet",
    )
    with errors.open("w") as file, command.start("train", HANGING, *options, stderr=file) as started:
        wait_until("a sentence", lambda: said(errors))
        time.sleep(1.5)  # in which it could say it again
        family = command.family(started, 4)
        family["worker"][2].resume()
        without_file(said(errors)[0])
        ended = command.end(started)
    assert ended.code == 0
    first, last = errors.read_text().splitlines()
    assert first.startswith("worker 2 is stopped by a signal")
    assert re.fullmatch(r"worker 2 goes on, \d+ s later", last)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group with little memory."""
    root = Path("/sys/fs/cgroup/memory")
    path = root / f"samestep-{os.getpid()}"
    if not os.access(root, os.W_OK) or not (root / "cgroup.procs").exists():
        pytest.skip("there is no control group for memory that this process may make")
    path.mkdir()
    (path / "memory.limit_in_bytes").write_text(str(1200 << 20))
    yield path
    wait_until("the group to be empty", lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def test_a_worker_that_exhausts_the_memory_is_told_from_one_that_somebody_killed(
    tmp_path: Path, memory_group: Path
) -> None:
    command = Command(tmp_path)

    def enter() -> None:
        (memory_group / "cgroup.procs").write_text(str(os.getpid()))

    options = ("--set", "fault=memory", "--workers", 2, "--plan", "data", "--quiet")
    with command.start("train", HANGING, *options, preexec_fn=enter) as started:
        ended = command.end(started)
    assert ended.code == 1
    assert re.match(
        r"worker 1 was killed by SIGKILL at step 3: the memory of its control group was exhausted; give it more",
        ended.err,
    )


# ----------------------------------------------------------------------------- workers that were started apart


def own_calls(folder: Path, what: str, workers: int = 2) -> list["subprocess.Popen[Any]"]:
    """The script as several workers of this host; what each says goes to a file."""
    world = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    found = []
    for rank in range(workers):
        with (folder / f"{rank}.err").open("w") as file:
            found.append(
                start_script(
                    OWN_CALLS, what, str(LIMIT), stderr=file, cwd=folder,
                    env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **world, "RANK": str(rank)},
                )
            )  # fmt: skip
    return found


def test_a_worker_that_lingers_between_two_calls_is_named_and_its_watcher_ends_with_it(tmp_path: Path) -> None:
    started = own_calls(tmp_path, "lingers")
    try:
        wait_until("a sentence", lambda: said(tmp_path / "0.err"))
        text, stacks = without_file(said(tmp_path / "0.err")[0])
        watchers = [pid for pid in children(started[0].pid) if is_watcher(pid)]
        assert len(watchers) == 1
    finally:
        for process in started:
            process.kill()
            process.wait()
    pattern = r"worker 1 on host \S+ has not entered action \d+, Agree\(\) of step 4: it is in no call of its trainer, "
    pattern += r"after step 4; it is in own_calls\.py:\d+ main, asleep in \w+ for \d+ s; worker 0 waits for it"
    assert re.fullmatch(pattern, text), text
    assert "own_calls.py" in stacks
    wait_until("the watcher to end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in watchers))


def is_watcher(pid: int) -> bool:
    return "samestep.launch.hosts.host_watcher" in Path(f"/proc/{pid}/cmdline").read_text()


def test_a_loop_that_ends_earlier_on_one_worker_is_named_by_the_others(tmp_path: Path) -> None:
    codes = [process.wait(240) for process in own_calls(tmp_path, "uneven")]
    assert codes == [1, 0]
    last = (tmp_path / "0.err").read_text().splitlines()[-1]
    assert "lost worker 1 on host" in last
    assert "or come to the end of its script, after step 4: every worker must make as many calls as the others" in last


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(2) as found:
            yield found
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def on_hosts(folder: Path, hosts: Hosts, fault: str, counts: tuple[int, ...] = (1, 2), step: int = 3) -> ByHand:
    run = ByHand(folder, counts, hosts)
    run.start(HANGING, "--set", f"fault={fault}", "--set", "pace=0.02", "--set", f"note={folder / 'note'}",
              "--set", f"step={step}", "--stall", LIMIT, "--plan", "data", "--quiet", "--epochs", 50)  # fmt: skip
    return run


def wait_until_it_trains(run: ByHand) -> None:
    wait_until("the step of the fault, which is none", (run.folder / "note").exists)


def first_words(run: ByHand, rank: int) -> str:
    """What a worker's host says of a stall first."""
    stream = run.started[rank].stderr
    assert stream is not None
    return next((line.rstrip() for line in stream if "; stacks " in line), "")


def stop(run: ByHand) -> None:
    for process in run.started.values():
        process.kill()
        process.communicate()
    wait_until("all processes to vanish", lambda: not run.command.processes())
    for path in run.command.temporary.glob("samestep-stacks-*"):
        path.unlink()
    run.command.check_nothing_left()


def test_a_worker_of_another_host_is_named_where_worker_0_is_with_its_line(tmp_path: Path, hosts: Hosts) -> None:
    run = on_hosts(tmp_path, hosts, "late")
    try:
        text = first_words(run, 0)
    finally:
        stop(run)
    pattern = (
        r"worker [12] on host \S+ has not entered action \d+, Agree\(\) of step 3; it is in hanging\.py:\d+ late, "
    )
    assert re.match(pattern + r"asleep in \w+ for \d+ s; workers 0, [12] wait for it", text), text


@pytest.mark.parametrize("victim", [0, 2])
def test_a_worker_that_is_stopped_is_no_broken_link(tmp_path: Path, hosts: Hosts, victim: int) -> None:
    """Worker 0 keeps the store at which the hosts' watchers meet."""
    run = on_hosts(tmp_path, hosts, "sleepless", step=30)
    try:
        wait_until_it_trains(run)
        os.kill(run.started[victim].pid, signal.SIGSTOP)
        texts = [first_words(run, 0)] + ([first_words(run, 1)] if victim == 0 else [])
    finally:
        stop(run)
    assert re.match(rf"worker {victim} on host \S+ is stopped by a signal, in ", texts[0]), texts[0]
    assert all(re.match(r"worker 0 on host \S+ is stopped", text) for text in texts[1:]), texts


def test_a_link_that_is_down_is_told_from_both_sides(tmp_path: Path, hosts: Hosts) -> None:
    run = on_hosts(tmp_path, hosts, "sleepless", step=30)
    try:
        wait_until_it_trains(run)
        hosts[1].link_down()
        texts = [first_words(run, 0), first_words(run, 1)]
    finally:
        hosts[1].link_up()
        stop(run)
    for text in texts:
        assert "the link between" in text, text
        assert re.match(r"worker \d on host \S+ waits for worker \d on host \S+ in ", text), text

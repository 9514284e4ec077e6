"""However a run ends, nothing of it is left: no process, socket, segment in shared memory or unfinished file.

`Command.end` holds that after every run here; see commands.py.
"""

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import samestep
from commands import Command, Ended, hear_signals, wait_until
from samestep.launch.run.launcher import Launcher

LASTING = Path(__file__).parents[2] / "jobs_bad" / "lasting.py"


def steps_done(command: Command) -> int:
    """What the job's callback noted."""
    notes = command.folder / "notes"
    text = notes.read_text() if notes.exists() else ""
    return int(text) if text.isdigit() else 0


def training(command: Command, *arguments: object, workers: int = 2, **options: Any) -> subprocess.Popen[str]:
    """The job that lasts, started and some steps on its way."""
    started = command.start("train", LASTING, "--workers", workers, "--quiet", *arguments, **options)
    before = steps_done(command)
    wait_until("some steps", lambda: steps_done(command) > before + 3 or started.poll() is not None)
    assert started.poll() is None, started.communicate()
    return started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_ends_while_it_measures_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Four processes at least: the fork server, the leader, the one that measures, a worker of its."""
    command = Command(tmp_path)
    with command.start("train", LASTING, "--workers", 2, "--quiet", "--profile", "never.json") as started:
        wait_until("a probe", lambda: len(command.processes()) > 4 or started.poll() is not None)
        assert started.poll() is None, started.communicate()
        started.send_signal(number)
        ended = command.end(started)
    assert ended.code == (130 if number is signal.SIGINT else -number)
    assert not (tmp_path / "never.json").exists()
    assert steps_done(command) == 0


def test_a_run_with_loader_workers_leaves_nothing_after_success(tmp_path: Path) -> None:
    ended = Command(tmp_path).run(
        "train", LASTING, "--workers", 2, "--steps", 6, "--set", "loaders=2", "--quiet",
        "--save", "w.safetensors", "--checkpoint", "kept", "--every", 3,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize(
    ("number", "loaders"), [(signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_a_stopped_run_without_checkpoint_ends_at_once_with_130(
    tmp_path: Path, number: signal.Signals, loaders: int
) -> None:
    command = Command(tmp_path)
    with training(command, "--set", f"loaders={loaders}") as started:
        started.send_signal(number)
        ended = command.end(started)
    assert (ended.code, ended.out, len(ended.errors)) == (130, "", 1)
    assert ended.err.startswith("stopped after step ")


@pytest.mark.parametrize("transport", ["processes", "threads"])
def test_a_stopped_run_with_checkpoint_writes_a_last_one_from_which_the_digest_is_reached(
    launcher: Launcher, tmp_path: Path, transport: str
) -> None:
    command = Command(tmp_path)
    with training(command, "--checkpoint", "kept", "--transport", transport) as started:
        started.send_signal(signal.SIGINT)
        ended = command.end(started)
    assert ended.code == 130
    (last,) = (tmp_path / "kept").iterdir()
    stopped = int(last.name.removeprefix("step-"))
    assert ended.err == f"stopped after step {stopped}; the last checkpoint holds it, --resume goes on\n"
    settings = {"notes": str(tmp_path / "notes")}
    options = {"settings": settings, "steps": stopped + 7, "launcher": launcher}
    resumed = samestep.train(f"{LASTING}:job", workers=1, checkpoint=tmp_path / "kept", resume=True, **options)
    undisturbed = samestep.train(f"{LASTING}:job", workers=2, **options)
    assert resumed.digest == undisturbed.digest
    assert resumed.losses == undisturbed.losses[stopped:]


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with training(command, "--checkpoint", "kept") as started:
        for worker in command.family(started, 2)["worker"]:
            worker.suspend()  # a step that never ends
        started.send_signal(signal.SIGINT)
        wait_until("the first to be seen", lambda: not pending(started.pid, signal.SIGINT))
        started.send_signal(signal.SIGINT)
        ended = command.end(started)
    assert ended.code == 130
    assert not (tmp_path / "kept").exists()


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal was sent to a process and not yet taken by it."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_is_stopped_while_its_job_is_still_being_built(tmp_path: Path, number: signal.Signals) -> None:
    command = Command(tmp_path)
    with command.start("train", f"{LASTING}:slow_to_build", "--quiet") as started:
        wait_until("the job to be built", (tmp_path / "notes").exists)
        started.send_signal(number)
        ended = command.end(started)
    if number == signal.SIGINT:
        assert (ended.code, ended.err) == (130, "stopped before the first step\n")


def test_nothing_outlives_a_killed_command(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with training(command, "--checkpoint", "kept", "--every", 1, "--set", "loaders=2") as started:
        started.kill()
        assert command.end(started).code == -signal.SIGKILL


@pytest.mark.parametrize(("which", "loaders"), [(0, 2), (1, 0)])
def test_a_killed_worker_ends_the_run_and_is_named_with_its_signal_and_step(
    tmp_path: Path, which: int, loaders: int
) -> None:
    command = Command(tmp_path)
    with training(command, "--set", f"loaders={loaders}") as started:
        command.family(started, 2)["worker"][which].kill()
        ended = command.end(started)
    assert (ended.code, ended.out, len(ended.errors)) == (1, "", 1)
    assert ended.err.startswith(f"worker {which} was killed by SIGKILL at step ")
    step = int(ended.err.partition(" at step ")[2].partition(":")[0])
    assert abs(steps_done(command) - step) <= 1


def test_a_killed_loader_worker_ends_the_run_with_the_worker_that_lost_it(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with training(command, "--set", "loaders=1") as started:
        family = command.family(started, 2)
        family["loader"][0].kill()
        ended = command.end(started)
    assert ended.code == 1
    assert ended.err.startswith("worker 0 failed at step ")
    assert "DataLoader worker" in ended.errors[0]


def test_a_killed_leader_ends_the_run(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with training(command) as started:
        command.family(started, 2)["leader"][0].kill()
        ended = command.end(started)
    assert (ended.code, ended.out, len(ended.errors)) == (1, "", 1)
    assert ended.err.startswith("the run's leader is gone at step ")


def test_a_run_goes_on_and_ends_well_without_its_fork_server(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with training(command) as started:
        command.family(started, 2)["server"][0].kill()
        before = steps_done(command)
        wait_until("more steps", lambda: steps_done(command) > before + 3)
        started.send_signal(signal.SIGINT)
        ended = command.end(started)
    assert ended.code == 130


@pytest.mark.parametrize("victim", ["command", "leader", "worker"])
def test_a_kill_during_a_save_leaves_whole_checkpoints_only(launcher: Launcher, tmp_path: Path, victim: str) -> None:
    command = Command(tmp_path)
    wide = ("--set", "hidden=20000")  # so that writing takes a while
    with training(command, *wide, "--checkpoint", "kept", "--every", 1) as started:
        family = command.family(started, 2)
        wait_until("a save to begin", lambda: list((tmp_path / "kept").glob(".unfinished-*")))
        family[victim][0].kill()
        command.end(started)
    found = sorted((tmp_path / "kept").iterdir())
    assert all((folder / "checkpoint.json").is_file() for folder in found)
    last = int(found[-1].name.removeprefix("step-"))
    report = samestep.train(
        f"{LASTING}:job",
        settings={"notes": str(tmp_path / "notes"), "hidden": 20000},
        workers=2,
        checkpoint=tmp_path / "kept",
        resume=True,
        steps=last + 1,
        launcher=launcher,
    )
    assert report.steps == last + 1


def test_two_runs_at_once_have_the_digests_that_they_have_alone(launcher: Launcher, tmp_path: Path) -> None:
    commands, arguments = [], []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        commands.append(Command(folder))
        arguments.append(("--seed", seed, "--workers", 2, "--steps", 60, "--set", "loaders=1", "--quiet", "--json"))
    started = [command.start("train", LASTING, *options) for command, options in zip(commands, arguments, strict=True)]
    ended = [finish(command, process) for command, process in zip(commands, started, strict=True)]
    assert [run.code for run in ended] == [0, 0]
    together = [json.loads(run.out)["digest"] for run in ended]
    alone = [
        samestep.train(
            f"{LASTING}:job", settings={"notes": str(tmp_path / "n")}, seed=seed, workers=1, steps=60, launcher=launcher
        ).digest
        for seed in (1, 2)
    ]
    assert together == alone
    assert together[0] != together[1]


def finish(command: Command, started: subprocess.Popen[str]) -> Ended:
    with started:
        return command.end(started)


def test_two_runs_of_one_fork_server_do_not_disturb_one_another(launcher: Launcher, tmp_path: Path) -> None:
    """One that fails, between two that are the same."""
    settings = {"notes": str(tmp_path / "notes")}
    options: Any = {"settings": settings, "workers": 2, "steps": 5, "launcher": launcher}
    before = samestep.train(f"{LASTING}:job", **options)
    with pytest.raises(samestep.Refused):
        samestep.train(f"{LASTING}:job", **{**options, "workers": 9})
    assert samestep.train(f"{LASTING}:job", **options).digest == before.digest


def test_saved_weights_are_whole_or_not_there(tmp_path: Path) -> None:
    command = Command(tmp_path)
    arguments = ("train", LASTING, "--workers", 2, "--quiet", "--save", "w.safetensors", "--set", "hidden=500000")
    with command.start(*arguments, "--steps", 1) as started:
        wait_until(
            "the weights to be written",
            lambda: list(tmp_path.glob(".unfinished-*")) or started.poll() is not None,
        )
        for process in command.processes()[1:]:
            if process.is_running():
                process.kill()
        command.end(started)
    if (tmp_path / "w.safetensors").exists():
        assert load_file(tmp_path / "w.safetensors")["0.weight"].shape == (500_000, 8)


def test_ctrl_c_in_a_terminal_stops_the_run_behind_its_live_line(tmp_path: Path) -> None:
    command = Command(tmp_path)
    ours, theirs = pty.openpty()
    program = ["train", LASTING, "--workers", 2]
    with command.start(*program, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal) as started:
        os.close(theirs)
        seen = b""
        while b"loss" not in seen or b"rows/s" not in seen:
            seen += os.read(ours, 4096)
        os.write(ours, b"\x03")
        while part := read_terminal(ours):
            seen += part
        ended = command.end(started)
    os.close(ours)
    assert ended.code == 130
    assert b"2 of 2 workers up, threads per worker: 1, 1" in seen
    assert b"stopped after step " in seen
    assert b"Traceback" not in seen


def take_terminal() -> None:
    """Before the command starts: a session of its own, with its stdin as the terminal."""
    hear_signals()
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_terminal(end: int) -> bytes:
    try:
        return os.read(end, 4096)
    except OSError:  # the last process that had it open is gone
        return b""

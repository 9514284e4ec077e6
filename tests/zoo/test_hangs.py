"""Bugs that make a run hang (18, 19 and 20 of the list): made to happen on purpose, and named.

Elsewhere a rank that enters another collective hangs until a timeout of half an hour, which then names nobody.
"""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import samestep
from by_hand import ByHand, last_line
from commands import free_port, start_script
from samestep.launch.hosts.membership import stores
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).resolve().parents[1]
OWN_CALLS = TESTS / "scripts" / "own_calls.py"
MORTAL = TESTS / "jobs" / "mortal.py"
AT_ONCE = 120.0  # seconds for a start, on a busy machine; nobody waits for a timeout, which is 200


def loop(folder: Path, what: str, workers: int = 3) -> list[str]:
    """Everybody's last line, of a loop of one's own in which the last worker does something else."""
    world = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **world}
    started = [
        start_script(OWN_CALLS, what, "0", stderr=subprocess.PIPE, env={**own, "RANK": str(rank)})
        for rank in range(workers)
    ]
    ended = [process.communicate(timeout=AT_ONCE)[1] for process in started]
    assert [process.returncode for process in started] == [1] * workers
    return [text.splitlines()[-1] for text in ended]


DIFFERENT = {
    "under if": ("digest after step 4", "Agree of step 4"),
    "branch": ("evaluate after step 4", "Agree of step 4"),
    "swapped": ("digest after step 4", "evaluate after step 4"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_18_a_call_under_if_rank_is_named_at_once_with_both_calls(tmp_path: Path, what: str) -> None:
    """Also calls in swapped order, and a branch that one worker takes."""
    odd, even = DIFFERENT[what]
    lines = loop(tmp_path, what)
    sides = {rf"worker 2 is in {odd} and meets worker \d, which is in {even}"}
    sides |= {rf"worker {rank} is in {even} and meets worker 2, which is in {odd}" for rank in (0, 1)}
    for line in lines:
        assert "Disagreement: " in line
        assert any(re.search(side, line) for side in sides), line
    assert all("look for a call under `if rank == ...`" in line for line in lines)


@pytest.fixture
def store() -> Any:
    """As a launcher holds it, through all restarts of a run."""
    return stores.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def restarted(folder: Path, port: int, restart: int, *more: object) -> ByHand:
    run = ByHand(folder, (2,))
    run.port = port
    launched = {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    run.start(
        MORTAL, "--set", "victim=1", "--set", "how=SIGKILL", "--quiet", "--json", *more,
        env={**launched, "TORCHELASTIC_RESTART_COUNT": str(restart)},
    )  # fmt: skip
    return run


def test_19_a_restart_reads_nothing_that_the_start_before_left_in_the_store(
    tmp_path: Path, store: Any, launcher: Launcher
) -> None:
    """Every key begins with the run and how often it was started."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    ended = restarted(tmp_path / "first", store.port, 0).end()
    assert (ended[0].code, ended[1].code) == (1, -signal.SIGKILL)
    left = store.num_keys()
    assert left > 2
    again = restarted(tmp_path / "second", store.port, 1).end()
    assert [again[rank].code for rank in range(2)] == [0, 0]
    digest = samestep.train(f"{TESTS / 'jobs' / 'grids.py'}:mlp", workers=1, launcher=launcher).digest
    assert f'"digest": "{digest}"' in again[0].out
    assert store.num_keys() > left


def test_20_a_peer_that_dies_before_it_connects_is_named_within_the_limit(tmp_path: Path) -> None:
    """And again when the time is over that workers wait for one another."""
    run = ByHand(tmp_path, (2,))
    run.start(MORTAL, "--set", "victim=9", "--set", "how=error", "--stall", 2, "--timeout", 9, "--quiet")
    run.kill(1)
    stream = run.started[0].stderr
    assert stream is not None
    assert stream.readline().startswith("worker 0 has waited 1.5 s for worker 1 of 2 to come, and waits on until 9 s")
    ended = run.end()
    assert ended[0].code == 1
    assert re.match(r"worker 0 has waited 9 s at \S+ for worker 1 of 2: see whether", last_line(ended[0]))

"""What workers on several hosts say when one of them does not come, differs, fails, dies or hangs: and all end.

Every survivor ends in time with 1, or 2 for what was refused; it names the lost worker and its host in
its last line; and nothing is left behind.
"""

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from by_hand import ByHand, last_line
from commands import Ended
from hosts import Hosts, HostsUnavailable

JOBS = Path(__file__).parents[2] / "jobs"
MORTAL = JOBS / "mortal.py"
ON = f"on host {re.escape(socket.gethostname())}"
TIMEOUT = 6  # seconds; workers that start at the same time come within it on a busy machine too


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(3) as found:
            yield found
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def mortal(victim: int, how: str, *more: object) -> list[object]:
    return [MORTAL, "--set", f"victim={victim}", "--set", f"how={how}", "--timeout", TIMEOUT, *more]


# ------------------------------------------------------------------------------------------ before the first step


def test_a_worker_that_never_comes_is_named(tmp_path: Path) -> None:
    run = ByHand(tmp_path, (3,))
    run.start(MORTAL, *mortal(9, "error")[1:], ranks=(0, 2))
    for rank, ended in run.end().items():
        assert ended.code == 1
        place = re.escape(f"{run.address}:{run.port}")
        assert re.search(rf"^worker {rank} has waited {TIMEOUT} s at {place} for worker 1 of 3: ", last_line(ended))


def test_workers_that_look_for_one_another_at_the_wrong_place_say_where(tmp_path: Path) -> None:
    """Nobody listens at port 1; and the address of the other one is no address of this host."""
    run = ByHand(tmp_path, (2,))
    run.start(*mortal(9, "error"), ranks=(1,), MASTER_PORT="1")
    run.start(*mortal(9, "error"), ranks=(0,), MASTER_ADDR="192.0.2.1")
    ended = run.end()
    assert ended[1].code == 1
    assert re.search(rf"^worker 1 {ON} found nobody at 127\.0\.0\.1:1 within {TIMEOUT} s ", last_line(ended[1]))
    assert ended[0].code == 2
    assert last_line(ended[0]).startswith(f"samestep: worker 0 cannot listen at 192.0.2.1:{run.port} ")


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    run = ByHand(tmp_path, (2,))
    with socket.socket() as other:
        other.bind((run.address, run.port))
        other.listen()
        run.start(*mortal(9, "error"), ranks=(0,))
        ended = run.end()
    assert ended[0].code == 2
    assert re.search(
        rf"^samestep: worker 0 cannot listen at 127\.0\.0\.1:{run.port} .*{ON}: Address already in use; name ",
        last_line(ended[0]),
    )


def refusals(run: ByHand) -> set[str]:
    """What the workers refused, each of them alike; one has said it for all."""
    ended = run.end()
    assert {e.code for e in ended.values()} == {2}
    return {last_line(e) for e in ended.values()} - {""}


def test_a_job_file_that_differs_between_two_folders_is_refused_with_both(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(JOBS / "grids.py", tmp_path / folder)
    with (tmp_path / "b" / "grids.py").open("a") as file:
        file.write("# another version\n")
    run = ByHand(tmp_path, (2,))
    for rank, folder in enumerate("ab"):
        run.start(f"{tmp_path / folder}/grids.py:mlp", "--timeout", TIMEOUT, ranks=(rank,))
    [line] = refusals(run)
    hashed = "grids.py with hash [0-9a-f]{16}"
    assert re.search(
        rf"^samestep: worker 1 {ON} has job's file {hashed}, worker 0 {ON} has {hashed}: the bits would differ", line
    )


def test_options_that_differ_are_refused_with_both(tmp_path: Path) -> None:
    run = ByHand(tmp_path, (2,), cold=True)
    run.start(f"{JOBS}/grids.py:mlp", "--timeout", TIMEOUT, each=lambda rank: ("--seed", 7 + rank))
    [line] = refusals(run)
    assert re.search(rf"^samestep: worker 1 {ON} has setting seed 8, worker 0 {ON} has 7: ", line)


def test_a_number_of_workers_that_disagrees_is_refused(tmp_path: Path) -> None:
    run = ByHand(tmp_path, (2,))
    run.start(f"{JOBS}/grids.py:mlp", "--timeout", TIMEOUT, "--workers", 3)
    [line] = refusals(run)
    assert line.startswith("samestep: --workers 3, and the environment has started 2 processes: ")


@pytest.mark.parametrize("steps", [5, 500])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_data_file_that_one_worker_does_not_find_ends_all_at_once(tmp_path: Path, victim: int, steps: int) -> None:
    """Of a short job, and of one for which a plan is looked for."""
    (tmp_path / "reads.py").write_text(
        "import os\nfrom pathlib import Path\n\nimport samestep\n\n\n"
        "def job() -> samestep.Job:\n"
        f"    if os.environ['RANK'] == '{victim}':\n"
        "        Path('digits.npy').read_bytes()\n"
        f"    import sys\n\n    sys.path.insert(0, {str(JOBS)!r})\n    import grids\n\n    return grids.mlp()\n"
    )
    run = ByHand(tmp_path, (3,))
    run.start("reads.py", "--timeout", 300, "--steps", steps)
    ended = run.end()
    assert [e.code for e in ended.values()] == [1] * 3
    reason = "FileNotFoundError: [Errno 2] No such file or directory: 'digits.npy'"
    assert ended[victim].errors[0] == f"the job failed before training: {reason}"
    assert last_line(ended[victim]) == reason
    others = [last_line(e) for rank, e in ended.items() if rank != victim and e.err]
    assert f"{run.name(victim)} could not begin: {reason}" in others, "one may say it for all"


# ---------------------------------------------------------------------------------------------- in the middle of a step

LOST = {"error": "its connection closed", "SIGKILL": "its connection closed", "SIGSTOP": "it has not answered for"}


def check_survivors(run: ByHand, victim: int, how: str, ended: dict[int, Ended]) -> None:
    """Whom each of them has lost may be one that has lost the victim before; then it says that one's word too."""
    survivors = [rank for rank in range(run.size) if rank != victim]
    for rank in survivors:
        line = last_line(ended[rank])
        assert ended[rank].code == 1, ended[rank].err
        assert re.search(rf"^worker {rank} {ON} lost worker \d {ON}( in \w+\(.*\))?: ", line), line
        if victim == 0:  # and with it the store, where others have their word
            assert re.search(rf"lost worker 0 {ON}|worker 0 {ON}, who keeps the store", line), line
        elif how != "error":
            assert re.search(rf"worker \d {ON} lost worker {victim} {ON}( in \w+\(.*\))?: {LOST[how]}", line), line
        assert "Traceback" not in ended[rank].err
    if how == "error":
        reason = rf"worker {victim} {ON} failed at step \d: ValueError: the reason"
        assert ended[victim].code == 1
        assert re.search(f"^{reason}$", ended[victim].err, re.MULTILINE)
        if victim != 0:  # with which the place where they meet goes
            assert all(re.search(rf"\. {reason}$", last_line(ended[rank])) for rank in survivors)


def weather(run: ByHand, victim: int, how: str, *more: object) -> None:
    run.start(*mortal(victim, how, "--steps", 9, *more))
    stopped = [victim] if how == "SIGSTOP" else []
    for rank in stopped:
        run.wait_until_stopped(rank)
    check_survivors(run, victim, how, run.end(stopped=stopped))


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("how", LOST)
def test_a_worker_lost_in_a_step_is_named_by_all_others_of_its_host(tmp_path: Path, how: str, victim: int) -> None:
    weather(ByHand(tmp_path, (3,)), victim, how)


@pytest.mark.parametrize("victim", [0, 3])
@pytest.mark.parametrize("how", LOST)
def test_a_worker_lost_in_a_step_is_named_on_all_hosts(tmp_path: Path, how: str, victim: int, hosts: Hosts) -> None:
    weather(ByHand(tmp_path, (1, 2, 1), hosts), victim, how)


@pytest.mark.parametrize("cut", [0, 2])
def test_a_link_that_goes_down_in_a_step_ends_all_workers_in_time(tmp_path: Path, cut: int, hosts: Hosts) -> None:
    """No connection closes, both sides only hear nothing any more. Worker 3 waits while the link is taken down."""
    run = ByHand(tmp_path, (1, 2, 1), hosts)
    run.start(*mortal(3, "SIGSTOP", "--steps", 9))
    run.wait_until_stopped(3)
    hosts[cut].link_down()
    try:
        run.go_on(3)
        ended = run.end()
    finally:
        hosts[cut].link_up()
    for rank, end in ended.items():
        line = last_line(end)
        assert end.code == 1, end.err
        assert re.search(rf"^worker {rank} {ON} lost worker \d {ON}( in \w+\(.*\))?: ", line), line
    inside = [rank for rank, host in enumerate(run.host_of) if host == cut]
    for rank in inside:
        line = last_line(ended[rank])
        assert re.search(rf"lost worker [^{rank}] {ON}( in \w+\(.*\))?: it has not answered for {TIMEOUT} s", line), (
            line
        )

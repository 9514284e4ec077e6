"""Who holds up a run, from facts alone: made-up workers, no processes."""

from dataclasses import replace
from typing import Any

import pytest

from samestep.diagnose.stacks import Frame
from samestep.diagnose.stall import Kind, OwnWork, Process, Stall, WorkerView, aged, blocked_by, find
from samestep.trace.whereabouts import LEFT, NOBODY

PATIENCE = 24.0
LONG = 31.0
IN_DATA = Frame("/home/me/dataset.py", 88, "__getitem__")


def workers(*found: WorkerView) -> dict[int, WorkerView]:
    return {worker.rank: worker for worker in found}


def worker(rank: int, **fields: Any) -> WorkerView:
    """One that is well: it entered its action just now."""
    process = fields.pop("process", Process(100 + rank, "S", 0.4, has_run=True))
    known = {"step": 12, "number": 417, "action": "Forward(shard=1, segment=0)", "still": 0.1, "process": process}
    return WorkerView(rank, f"worker {rank}", **{**known, **fields})


def waiter(rank: int, peer: int, seconds: float = LONG, **fields: Any) -> WorkerView:
    process = Process(100 + rank, "S", 0.0, asleep_in="unix_stream_read_generic")
    known = {"peer": peer, "waits": seconds, "still": seconds, "action": "Agree()", "process": process}
    return worker(rank, **{**known, **fields})


def culprit(rank: int, process: Process, **fields: Any) -> WorkerView:
    return worker(rank, **{"still": LONG, "process": process, **fields})


def stall(*found: WorkerView, patience: float = PATIENCE) -> Stall:
    result = find(workers(*found), patience)
    assert result is not None
    return result


ASLEEP = Process(102, "S", 0.0, asleep_in="hrtimer_nanosleep", frame=IN_DATA)
RUNNING = Process(102, "R", 0.9, has_run=True, frame=IN_DATA)


def test_the_sentence_of_a_worker_that_computes_for_long() -> None:
    found = stall(waiter(0, 2), waiter(1, 2), culprit(2, RUNNING), waiter(3, 2))
    assert (found.kind, found.culprits, found.waiting) == (Kind.RUNNING, (2,), (0, 1, 3))
    assert found.text == (
        "worker 2 has not entered action 417, Agree() of step 12; it is in dataset.py:88 __getitem__, running for 31 s"
        "; workers 0, 1, 3 wait for it"
    )


KINDS = {
    Kind.STOPPED: replace(ASLEEP, state="T"),
    Kind.RUNNING: RUNNING,
    Kind.IDLE: ASLEEP,
    Kind.LOCK: replace(ASLEEP, asleep_in="futex_wait_queue"),
    Kind.DEAD: replace(ASLEEP, state="Z"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_a_culprit_is_read_off_the_kernels_account(kind: Kind) -> None:
    assert stall(waiter(0, 1), culprit(1, KINDS[kind])).kind == kind


def test_a_lock_of_python_is_one_where_the_kernel_does_not_tell() -> None:
    assert stall(waiter(0, 1), culprit(1, replace(ASLEEP, asleep_in="", in_lock=True))).kind == Kind.LOCK


def test_a_worker_that_gets_little_of_the_processor_is_not_idle() -> None:
    """Four to a core, and seen ready to run once."""
    starved = Process(1, "S", 0.01, has_run=True)
    assert stall(waiter(0, 1), culprit(1, starved)).kind == Kind.RUNNING


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (Process(7, "S", asleep_in="pipe_read", frame=IN_DATA), "is in dataset.py:88 __getitem__, asleep in pipe_read"),
        (Process(7, "R", has_run=True, frame=IN_DATA), "is in dataset.py:88 __getitem__, running"),
        (Process(7, "T"), "is stopped by a signal (`kill -CONT 7` lets it go on)"),
        (Process(7, "D"), "is waiting for a device"),
    ],
)
def test_a_worker_that_waits_for_its_loader_names_what_that_does(loader: Process, words: str) -> None:
    lost = culprit(1, Process(2, "S", 0.0), action="Load()", in_loader=True, loaders=(Process(6), loader))
    if loader.frame is None and not loader.is_stopped:
        lost = replace(lost, loaders=(loader,))
    found = stall(waiter(0, 1), lost)
    assert found.kind == Kind.LOADER
    assert f"waits for its loader process 7, which {words}, in Load() of step 12, for 31 s" in found.text


def test_a_chain_of_waiting_leads_to_the_one_who_waits_for_nobody() -> None:
    found = stall(waiter(0, 1), waiter(1, 2), waiter(2, 3), culprit(3, ASLEEP))
    assert (found.culprits, found.waiting) == ((3,), (0, 1, 2))


def test_those_who_wait_for_a_moment_only_are_counted_but_raise_no_alarm() -> None:
    assert find(workers(waiter(0, 1, 3.0), culprit(1, ASLEEP, still=3.0)), PATIENCE) is None
    assert stall(waiter(0, 2), waiter(1, 2, 1.0), culprit(2, ASLEEP)).waiting == (0, 1)


def test_a_worker_that_moves_is_no_alarm_however_long_others_wait() -> None:
    """A pipeline's first stage waits for the last one's many microbatches."""
    assert find(workers(waiter(0, 1), worker(1, still=0.5)), PATIENCE) is None


def test_a_long_action_that_nobody_waits_for_is_no_alarm() -> None:
    assert find(workers(culprit(0, RUNNING), culprit(1, RUNNING)), PATIENCE) is None


def test_a_worker_alone_that_sleeps_is_named() -> None:
    found = stall(culprit(0, ASLEEP))
    assert (found.kind, found.waiting) == (Kind.IDLE, ())
    assert found.text.startswith("worker 0 has not come through Forward(shard=1, segment=0) of step 12; it is in ")


def test_a_person_who_thinks_between_two_calls_is_no_alarm() -> None:
    assert find(workers(culprit(0, ASLEEP, call="", action=""), culprit(1, ASLEEP, call="")), PATIENCE) is None


def test_a_worker_in_no_call_while_others_wait_is_named_with_its_line() -> None:
    found = stall(waiter(0, 1), culprit(1, ASLEEP, call="", action="", done=7))
    assert found.kind == Kind.APART
    assert "it is in no call of its trainer, after step 7; it is in dataset.py:88" in found.text


def test_a_stopped_worker_is_named_though_nobody_waits_yet() -> None:
    assert stall(culprit(0, replace(ASLEEP, state="T")), worker(1)).kind == Kind.STOPPED


def test_different_calls_that_wait_for_one_another_never_end() -> None:
    found = stall(waiter(0, 1, call="evaluate", action=""), waiter(1, 0), waiter(2, 0))
    assert (found.kind, found.culprits, found.waiting) == (Kind.ORDER, (0, 1), (2,))
    assert found.is_certain
    assert "worker 0 is in evaluate after step 12, worker 1 is in Agree() of step 12" in found.text


def test_a_circle_that_just_closed_is_not_one_yet() -> None:
    assert find(workers(waiter(0, 1), waiter(1, 0, 0.2)), PATIENCE) is None


def test_hosts_that_wait_for_one_another_in_one_call_have_no_link() -> None:
    found = stall(waiter(0, 2), waiter(1, 0), waiter(2, 0, host=1), waiter(3, 2, host=1))
    assert (found.kind, found.culprits, found.waiting) == (Kind.LINK, (0, 2), (1, 3))
    assert not found.is_certain
    assert "both are well: what they send does not arrive" in found.text


def test_hosts_in_different_calls_are_not_a_broken_link() -> None:
    assert stall(waiter(0, 1), waiter(1, 0, host=1, call="digest")).kind == Kind.ORDER


def test_a_host_that_is_a_call_ahead_of_the_other_has_no_link() -> None:
    ahead = waiter(0, 1, call="step", step=13, calls=14)
    assert stall(ahead, waiter(1, 0, host=1, calls=13)).kind == Kind.LINK
    assert stall(ahead, waiter(1, 0, calls=13)).kind == Kind.ORDER  # on one host nothing is under way


def test_who_is_stopped_while_it_waits_is_to_blame() -> None:
    stopped = waiter(1, 0, process=Process(7, "T"))
    assert (stall(waiter(0, 1), stopped).kind, stall(waiter(0, 1), stopped).culprits) == (Kind.STOPPED, (1,))


def test_what_a_silent_host_said_last_is_no_circle() -> None:
    assert stall(waiter(0, 1, step=13), waiter(1, 0, host=1, host_name="b", silent=28.0)).kind == Kind.LINK


def test_a_host_that_is_silent_has_no_link() -> None:
    found = stall(waiter(0, 1), worker(1, host=1, host_name="b", still=40.0, silent=28.0))
    assert found.kind == Kind.LINK
    assert "nothing has been heard from b for 28 s" in found.text


def test_a_silent_host_that_answers_has_a_stopped_worker_0() -> None:
    found = stall(waiter(1, 0, host=1), worker(0, silent=28.0, keeps_store=True))
    assert (found.kind, found.culprits) == (Kind.STOPPED, (0,))


def test_a_worker_killed_for_memory_is_named_at_once() -> None:
    dead = worker(1, process=Process(5, "gone"), out_of_memory=True)
    found = stall(waiter(0, 1, 0.1), dead)
    assert (found.kind, found.is_certain) == (Kind.MEMORY, True)


def test_a_worker_that_died_unnoticed_is_named_when_its_time_is_over() -> None:
    dead = worker(1, process=Process(5, "gone"), still=3.0)
    assert find(workers(worker(0), dead), PATIENCE) is None
    assert stall(worker(0), replace(dead, still=25.0)).kind == Kind.DEAD


def test_a_host_that_is_silent_while_one_connects_to_it_has_no_link() -> None:
    connecting = worker(0, call="connect", action="", still=25.0)
    found = stall(connecting, worker(1, host=1, host_name="b", silent=26.0))
    assert found.kind == Kind.LINK
    assert find(workers(connecting, worker(1, host=1, silent=3.0)), PATIENCE) is None


def test_a_worker_that_has_left_as_it_should_is_no_alarm() -> None:
    assert find(workers(worker(0), worker(1, call=LEFT, process=Process(5, "gone"))), PATIENCE) is None


def test_whom_nobody_knows_is_no_culprit() -> None:
    assert find(workers(waiter(0, 9)), PATIENCE) is None


def paced(rank: int, now: float, usual: float = 0.1) -> WorkerView:
    return worker(rank, pace=OwnWork(now, usual))


def test_a_worker_that_takes_ten_times_as_long_as_before_is_slow() -> None:
    found = stall(paced(0, 0.1), paced(1, 1.2), paced(2, 0.11))
    assert (found.kind, found.culprits) == (Kind.SLOW, (1,))
    assert "a step takes it 1.2 s of its own and took it 100 ms before" in found.text


def test_who_is_stopped_and_so_takes_longer_is_not_called_slow() -> None:
    stopped = replace(paced(1, 1.2), process=Process(7, "T"))
    assert find(workers(paced(0, 0.1), stopped, paced(2, 0.11)), PATIENCE) is None


def test_a_worker_that_waits_for_others_all_the_same_is_not_the_slow_one() -> None:
    for waiting, found in ((0.3, True), (0.7, False)):
        slow = worker(1, pace=OwnWork(1.2, 0.1, waiting))
        assert (find(workers(paced(0, 0.1), slow), PATIENCE) is not None) == found


def test_a_few_milliseconds_more_are_those_of_a_busy_machine() -> None:
    assert find(workers(paced(0, 0.001, 0.001), paced(1, 0.006, 0.001)), PATIENCE) is None


def test_all_slower_together_is_a_busy_machine_and_no_alarm() -> None:
    assert find(workers(paced(0, 0.4), paced(1, 0.9), paced(2, 0.5)), PATIENCE) is None


def test_nor_is_the_one_that_the_others_wait_for_right_now() -> None:
    waiting = replace(waiter(0, 1), pace=OwnWork(0.5, 0.1, 0.6))
    assert find(workers(waiting, paced(1, 0.9)), PATIENCE) is None
    waiting = replace(waiter(0, 1), pace=OwnWork(0.1, 0.1, 0.6))
    assert stall(waiting, paced(1, 0.9)).kind == Kind.SLOW


def test_a_worker_that_was_always_slower_than_the_others_is_no_alarm() -> None:
    assert find(workers(paced(0, 0.1), paced(1, 1.0, 1.0)), PATIENCE) is None


def test_a_step_under_way_that_takes_far_longer_than_usual_is_slow_while_it_moves() -> None:
    slow = worker(1, still=2.0, pace=OwnWork(40.0, 0.5))
    assert stall(waiter(0, 1), slow).kind == Kind.SLOW


def test_a_stall_has_one_key_as_long_as_the_culprit_does_not_move() -> None:
    before = stall(waiter(0, 1), culprit(1, ASLEEP))
    seen_closer = culprit(1, replace(ASLEEP, asleep_in="futex"), still=50.0)
    assert stall(waiter(0, 1), seen_closer).key == before.key
    assert stall(waiter(0, 1), replace(seen_closer, number=418)).key != before.key


def test_what_is_known_of_a_worker_grows_old() -> None:
    assert aged(waiter(0, 1, 3.0), 2.0).waits == 5.0
    assert aged(worker(0), 2.0).waits == 0.0
    assert worker(0).peer == NOBODY


def test_waiting_for_a_waiter_is_waiting() -> None:
    known = workers(waiter(0, 1), waiter(1, 2), worker(2), worker(3))
    assert blocked_by(known[2], known) == (0, 1)

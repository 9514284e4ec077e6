"""The checker lets every generated schedule pass, and names what is wrong with a broken one."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.schedule.actions import (
    Action,
    Agree,
    Backward,
    BackwardWeight,
    Clip,
    Forward,
    Load,
    Publish,
    Receive,
    ReceiveGradient,
    Recompute,
    Reduce,
    Schedule,
    Send,
    SendGradient,
    SliceBackward,
    SliceForward,
    Update,
)
from samestep.schedule.checker import Peak, check, least_capacity
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.pipeline import ORDERS
from samestep.schedule.passes import schedule_of
from samestep.schedule.simulator import TAIL
from schedule.grids import DENSE, SLICED, any_grid, many, schedules_of, straight
from schedule.performing import performs

PAIR = straight(2, 2)
REDO = straight(2, 2, recompute=True)
ALONE = straight(1, 3)
LATER = straight(2, 3, split=True)
JOINT = Grid(4, 2, (StageGrid((0, 1), (4, 0), SLICED),))


def test_every_schedule_up_to_8_workers_4_chunks_32_shards() -> None:
    count = 0
    for order, grid, depth in many():
        check(grid, schedules_of(grid, order, depth=depth), capacity=grid.num_shards * len(grid.stages))
        count += 1
    assert count > 2000


@given(any_grid(), st.sampled_from(sorted(ORDERS)), st.integers(1, 3))
def test_every_grid_has_a_capacity_and_no_less_is_enough(grid: Grid, order: str, depth: int) -> None:
    schedules = schedules_of(grid, order, depth=depth)
    enough = least_capacity(grid, schedules)
    assert enough is not None
    found = check(grid, schedules, enough)
    assert max(found.in_flight.values(), default=0) <= enough
    if enough > 1:
        with pytest.raises(PlanRefused, match=f"a capacity of {enough} is enough"):
            check(grid, schedules, enough - 1)


@pytest.mark.parametrize("order", ORDERS)
def test_the_classical_pipelines_need_one_message_in_flight(order: str) -> None:
    assert least_capacity(straight(8, 32), schedules_of(straight(8, 32), order)) == 1


def test_recomputation_keeps_inputs_and_one_activation() -> None:
    grid = straight(3, 5, recompute=True)
    found = check(grid, schedules_of(grid, "1f1b"), capacity=1)
    assert found.peaks == (Peak(1, 3), Peak(1, 2), Peak(1, 1))


def test_a_sliced_segment_keeps_its_whole_set_on_every_worker() -> None:
    found = check(JOINT, schedules_of(JOINT, "gpipe"), capacity=1)
    assert found.peaks == (Peak(3 * 4), Peak(4))


def test_peaks_are_of_a_worker_and_of_each_of_its_stages() -> None:
    grid = straight(1, 3, 2)
    found = check(grid, schedules_of(grid, "gpipe"), capacity=1)
    assert found.peaks == (Peak(6),)
    grid = straight(2, 4, 2)
    found = check(grid, schedules_of(grid, "interleaved"), capacity=2)
    assert found.stage_peaks == {(0, 0): Peak(4), (1, 1): Peak(3), (0, 2): Peak(2), (1, 3): Peak(1)}
    assert found.peaks == (Peak(5), Peak(3))


def test_shards_in_lockstep_are_checked_as_forwards_and_backwards() -> None:
    grid = Grid(3, 1, (StageGrid((0, 1), (2, 1), DENSE),))
    schedules = [schedule_of(grid, "1f1b", rank, lockstep=True, clip=False) for rank in range(2)]
    check(grid, schedules, capacity=1)
    with pytest.raises(PlanRefused, match="worker 1 never does Forward"):
        check(grid, [schedules[0], (Load(), *schedules[1][2:])], capacity=1)


# ---- broken schedules: each is one edit of a good one

Edit = Callable[[list[list[Action]]], None]


def drop(rank: int, action: Action) -> Edit:
    return lambda lists: lists[rank].remove(action)


def put(rank: int, action: Action, before: Action) -> Edit:
    return lambda lists: lists[rank].insert(lists[rank].index(before), action)


def replace(rank: int, old: Action, new: Action) -> Edit:
    def edit(lists: list[list[Action]]) -> None:
        lists[rank][lists[rank].index(old)] = new

    return edit


def exchange(rank: int, one: Action, other: Action) -> Edit:
    def edit(lists: list[list[Action]]) -> None:
        i, j = lists[rank].index(one), lists[rank].index(other)
        lists[rank][i], lists[rank][j] = other, one

    return edit


def move(rank: int, action: Action, before: Action) -> Edit:
    def edit(lists: list[list[Action]]) -> None:
        lists[rank].remove(action)
        lists[rank].insert(lists[rank].index(before), action)

    return edit


def both(*edits: Edit) -> Edit:
    def edit(lists: list[list[Action]]) -> None:
        for each in edits:
            each(lists)

    return edit


BROKEN: dict[str, tuple[Grid, str, Edit, str]] = {
    "a send is missing": (
        *(PAIR, "1f1b", drop(0, Send(0, 0, 1))),
        "worker 0 never does Send(shard=0, stage=0, peer=1): worker 1 would wait for it; add it",
    ),
    "a message is left over": (
        *(PAIR, "1f1b", drop(1, Receive(1, 0, 0))),
        "worker 1 never does Receive(shard=1, stage=0, peer=0): worker 0 sends it, and nobody would take it",
    ),
    "a gradient is not sent": (
        *(PAIR, "1f1b", drop(1, SendGradient(1, 0, 0))),
        "worker 1 never does SendGradient(shard=1, stage=0, peer=0): worker 0 would wait",
    ),
    "a message that nobody wants": (
        *(PAIR, "1f1b", put(1, Send(0, 1, 0), Backward(0, 1))),
        "worker 1, action 3, Send(shard=0, stage=1, peer=0) is not worker 1's: the plan has no such action for anybody",
    ),
    "a forward is missing": (
        *(PAIR, "1f1b", drop(0, Forward(1, 0))),
        "worker 0 never does Forward(shard=1, segment=0): every shard goes once forward and once backward",
    ),
    "a backward is missing": (
        *(PAIR, "1f1b", drop(0, Backward(1, 0))),
        "worker 0 never does Backward(shard=1, segment=0): every shard goes once forward and once backward",
    ),
    "a forward comes twice": (
        *(PAIR, "1f1b", put(0, Forward(0, 0), Send(1, 0, 1))),
        "worker 0, action 4, Forward(shard=0, segment=0) comes twice, first as action 1: remove one",
    ),
    "a backward comes before its forward": (
        *(ALONE, "1f1b", exchange(0, Forward(1), Backward(1))),
        "worker 0, action 3, Backward(shard=1, segment=0) comes before Forward(shard=1, segment=0), action 4, which it",
    ),
    "a backward comes before its gradient": (
        *(PAIR, "1f1b", exchange(0, ReceiveGradient(0, 0, 1), Backward(0, 0))),
        "worker 0, action 5, Backward(shard=0, segment=0) comes before ReceiveGradient(shard=0, stage=0, peer=1)",
    ),
    "a send comes before its forward": (
        *(PAIR, "1f1b", exchange(0, Forward(1, 0), Send(1, 0, 1))),
        "worker 0, action 3, Send(shard=1, stage=0, peer=1) comes before Forward(shard=1, segment=0), action 4",
    ),
    "receives are swapped": (
        *(PAIR, "1f1b", exchange(1, Receive(0, 0, 0), Receive(1, 0, 0))),
        "worker 1, action 2, Forward(shard=0, segment=1) comes before Receive(shard=0, stage=0, peer=0), action 5",
    ),
    "backwards are not in shard order": (
        *(ALONE, "gpipe", exchange(0, Backward(1), Backward(2))),
        "worker 0, action 6, Backward(shard=1, segment=0) comes after Backward(shard=2, segment=0): gradients are add",
    ),
    "the update comes too early": (
        *(PAIR, "1f1b", move(1, Update(), Backward(1, 1))),
        "worker 1, action 7, Update() comes before worker 1, action 9, SendGradient(shard=1, stage=0, peer=0): "
        "a shard's forward and backward must use the same weights",
    ),
    "gradients are read too early": (
        *(ALONE, "1f1b", move(0, Agree(), Backward(2))),
        "worker 0, action 6, Agree() comes before worker 0, action 7, Backward(shard=2, segment=0): gradients are comp",
    ),
    "the update comes before the reduction": (
        *(PAIR, "1f1b", exchange(1, Reduce(), Update())),
        "worker 1 ends with Agree() Update() MergeBuffers() Reduce() Publish(); every step ends with Agree() Reduce()",
    ),
    "the new weights are not published": (
        *(PAIR, "1f1b", drop(0, Publish())),
        "worker 0 ends with Agree() Reduce() MergeBuffers() Update(); every step",
    ),
    "one worker clips": (
        *(PAIR, "1f1b", put(1, Clip(), Update())),
        "worker 1, action 12, Clip(): worker 0 has none; all clip or nobody",
    ),
    "the peer is wrong": (
        *(straight(3, 1), "1f1b", replace(0, Send(0, 0, 1), Send(0, 0, 2))),
        "worker 0, action 2, Send(shard=0, stage=0, peer=2) is not worker 0's: its peer is worker 1; "
        "write Send(shard=0, stage=0, peer=1)",
    ),
    "the worker is wrong": (
        *(PAIR, "1f1b", both(drop(0, Forward(1, 0)), put(1, Forward(1, 0), Receive(1, 0, 0)))),
        "worker 0 never does Forward(shard=1, segment=0)",
    ),
    "another worker's forward": (
        *(PAIR, "1f1b", put(1, Forward(1, 0), Receive(1, 0, 0))),
        "worker 1, action 5, Forward(shard=1, segment=0) is not worker 1's: it is worker 0's; move it there",
    ),
    "a shard that there is not": (
        *(ALONE, "1f1b", put(0, Forward(3), Agree())),
        "Forward(shard=3, segment=0) is not worker 0's: the plan has no such action for anybody; remove it",
    ),
    "a shard's rows are not loaded": (
        *(ALONE, "1f1b", exchange(0, Load(), Forward(0))),
        "worker 0, action 0, Forward(shard=0, segment=0) comes before Load(), action 1, which it needs",
    ),
    "a recomputation is missing": (
        *(REDO, "1f1b", drop(0, Recompute(1, 0))),
        "worker 0 never does Recompute(shard=1, segment=0): its stage keeps no activations",
    ),
    "a recomputation comes too late": (
        *(REDO, "1f1b", exchange(0, Recompute(1, 0), Backward(1, 0))),
        "Backward(shard=1, segment=0) comes before Recompute(shard=1, segment=0)",
    ),
    "a recomputation of what was kept": (
        *(PAIR, "1f1b", put(0, Recompute(0, 0), Backward(0, 0))),
        "Recompute(shard=0, segment=0) is not worker 0's: the plan has no such action for anybody",
    ),
    "gradients of weights are never made": (
        *(LATER, "zero-bubble", drop(1, BackwardWeight(2, 1))),
        "worker 1 never does BackwardWeight(shard=2, segment=1): its backward leaves gradients of weights for later, "
        "and the update would lack them; add it",
    ),
    "gradients of weights come before their backward": (
        *(LATER, "zero-bubble", exchange(1, BackwardWeight(0, 1), Backward(0, 1))),
        "BackwardWeight(shard=0, segment=1) comes before Backward(shard=0, segment=1)",
    ),
    "gradients of weights are not in shard order": (
        *(LATER, "zero-bubble", exchange(1, BackwardWeight(1, 1), BackwardWeight(2, 1))),
        "BackwardWeight(shard=1, segment=1) comes after BackwardWeight(shard=2, segment=1): gradients are added in",
    ),
    "gradients of weights come twice": (
        *(LATER, "zero-bubble", put(1, BackwardWeight(0, 1), BackwardWeight(2, 1))),
        "BackwardWeight(shard=0, segment=1) comes twice",
    ),
    "gradients of weights come after they were read": (
        *(LATER, "zero-bubble", move(1, Agree(), BackwardWeight(2, 1))),
        "Agree() comes before worker 1, action 16, BackwardWeight(shard=2, segment=1): gradients are complete",
    ),
    "gradients of weights that were not left": (
        *(PAIR, "1f1b", put(0, BackwardWeight(0, 0), Agree())),
        "BackwardWeight(shard=0, segment=0) is not worker 0's: the plan has no such action for anybody; remove it",
    ),
    "a worker without shards stays away from a meeting": (
        *(JOINT, "1f1b", drop(1, SliceForward(range(2), 1))),
        "worker 1 never does SliceForward(shards=range(0, 2), segment=1)",
    ),
    "a set that is none": (
        *(JOINT, "1f1b", replace(1, SliceForward(range(2), 1), SliceForward(range(3), 1))),
        "worker 1, action 1, SliceForward(shards=range(0, 3), segment=1) is not worker 1's: the plan has no such",
    ),
    "a sliced segment shard by shard": (
        *(JOINT, "1f1b", put(0, Forward(0, 1), SliceForward(range(2), 1))),
        "Forward(shard=0, segment=1) is not worker 0's: the plan has no such",
    ),
    "a slice goes backward before its gradients": (
        *(JOINT, "1f1b", exchange(0, Backward(1, 2), SliceBackward(range(2), 1))),
        "SliceBackward(shards=range(0, 2), segment=1) comes before Backward(shard=1, segment=2)",
    ),
    "meetings in different order": (
        *(JOINT, "gpipe", exchange(1, SliceForward(range(2), 1), SliceForward(range(2, 4), 1))),
        "the schedules deadlock: worker 0, action 3, SliceForward(shards=range(0, 2), segment=1) waits for worker 1 to "
        "join it; worker 1, action 1, SliceForward(shards=range(2, 4), segment=1) waits for worker 0 to join it; "
        "change the order",
    ),
    "two workers wait for one another": (
        *(PAIR, "gpipe"),
        both(move(0, ReceiveGradient(0, 0, 1), Forward(1, 0)), move(0, Backward(0, 0), Forward(1, 0))),
        "the schedules deadlock: worker 0, action 3, ReceiveGradient(shard=0, stage=0, peer=1) waits for worker 1 to "
        "send it; worker 1, action 3, Receive(shard=1, stage=0, peer=0) waits for worker 0 to send it; change the",
    ),
    "three workers wait in a circle": (
        *(straight(3, 2, 2), "gpipe"),
        both(move(0, Receive(0, 2, 2), Forward(0, 0)), move(0, Receive(1, 2, 2), Forward(0, 0))),
        "worker 0, action 1, Receive(shard=0, stage=2, peer=2) waits for worker 2 to send it; worker 2, action 1, "
        "Receive(shard=0, stage=1, peer=1) waits for worker 1 to send it; worker 1, action 1, "
        "Receive(shard=0, stage=0, peer=0) waits for worker 0 to send it; change",
    ),
}


def lists_of(grid: Grid, order: str) -> list[list[Action]]:
    return [list(schedule) for schedule in schedules_of(grid, order)]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_schedule_is_refused_and_the_fault_named(fault: str) -> None:
    grid, order, edit, words = BROKEN[fault]
    lists = lists_of(grid, order)
    check(grid, [tuple(each) for each in lists], capacity=8)
    edit(lists)
    with pytest.raises(PlanRefused, match=re.escape(words)):
        check(grid, [tuple(each) for each in lists], capacity=8)


def test_too_few_messages_in_flight() -> None:
    """Both stages' messages go over one channel: each worker sends what the other takes only later."""
    grid = straight(2, 4, 2)
    schedules = schedules_of(grid, "gpipe")
    with pytest.raises(PlanRefused) as refused:
        check(grid, schedules, capacity=1)
    assert str(refused.value) == (
        "the schedules deadlock with a channel capacity of 1: worker 0, action 8, Send(shard=3, stage=0, peer=1) waits "
        "for worker 1 to take a message (1 untaken); worker 1, action 6, Send(shard=1, stage=1, peer=0) waits for "
        "worker 0 to take a message (1 untaken); "
        "a capacity of 2 is enough, or change the order of one of these actions"
    )
    check(grid, schedules, capacity=2)


def test_every_worker_needs_a_schedule() -> None:
    with pytest.raises(PlanRefused, match="1 schedules for 2 workers"):
        check(PAIR, schedules_of(PAIR, "1f1b")[:1], capacity=1)


def test_an_empty_schedule() -> None:
    with pytest.raises(PlanRefused, match=re.escape("worker 1 never does Load()")):
        check(PAIR, [schedules_of(PAIR, "1f1b")[0], ()], capacity=1)


@given(any_grid(), st.sampled_from(sorted(ORDERS)), st.data())
def test_what_is_let_pass_runs_and_what_is_refused_does_not(grid: Grid, order: str, data: st.DataObject) -> None:
    """Against `performs`, which knows values instead of rules; two actions of one worker exchanged, or none."""
    lists = lists_of(grid, order)
    rank = data.draw(st.integers(0, len(lists) - 1))
    work = [position for position, action in enumerate(lists[rank]) if not isinstance(action, TAIL)]
    i, j = data.draw(st.sampled_from(work)), data.draw(st.sampled_from(work))
    lists[rank][i], lists[rank][j] = lists[rank][j], lists[rank][i]
    capacity = data.draw(st.integers(1, 3))
    schedules = [tuple(each) for each in lists]
    try:
        check(grid, schedules, capacity)
    except PlanRefused:
        assert not performs(grid, schedules, capacity, data.draw(st.randoms(use_true_random=False)))
    else:
        assert performs(grid, schedules, capacity, data.draw(st.randoms(use_true_random=False)))


@given(any_grid(), st.sampled_from(sorted(ORDERS)), st.data())
def test_a_schedule_that_lacks_any_action_is_refused(grid: Grid, order: str, data: st.DataObject) -> None:
    schedules: list[Schedule] = schedules_of(grid, order)
    rank = data.draw(st.integers(0, len(schedules) - 1))
    position = data.draw(st.integers(0, len(schedules[rank]) - 1))
    schedules[rank] = schedules[rank][:position] + schedules[rank][position + 1 :]
    with pytest.raises(PlanRefused, match=f"worker {rank}"):
        check(grid, schedules, capacity=1000)

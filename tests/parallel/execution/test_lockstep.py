import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import Disagreement, PeerLost
from samestep.numerics import random_streams
from samestep.parallel.execution.buffers import Buffers, buffer_starts
from samestep.parallel.execution.lockstep import LockstepRunner, meet
from samestep.transport.threads import ThreadFabric
from samestep.transport.transport import Transport

Shard = Callable[[int], None]


def no_buffers(_rank: int) -> Buffers:
    return Buffers(nn.Module(), [])


def run_over(assign: Sequence[int], shard: Shard, buffers: Callable[[int], Buffers] = no_buffers) -> list[Any]:
    """Run `shard(number)` for every shard, on as many workers as `assign` has; what each worker raised, or None."""
    fabric = ThreadFabric(len(assign))
    ranks = [rank for rank, count in enumerate(assign) if count]
    outcomes: list[Any] = [None] * len(assign)

    def work(rank: int, transport: Transport) -> None:
        first = sum(assign[:rank])
        together = LockstepRunner(transport, ranks, buffers(rank), torch.get_num_threads())
        if assign[rank]:
            together.run([lambda s=s: shard(s) for s in range(first, first + assign[rank])])  # type: ignore[misc]

    def thread(rank: int) -> None:
        transport = fabric.endpoint(rank)
        try:
            work(rank, transport)
        except Exception as failure:  # noqa: BLE001 - it is the outcome
            outcomes[rank] = failure
        finally:
            transport.close()

    threads = [threading.Thread(target=thread, args=(rank,), daemon=True) for rank in range(len(assign))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return outcomes


@pytest.mark.parametrize("assign", [(4,), (2, 2), (3, 1), (1, 0, 3), (1, 1, 1, 1)])
def test_every_shard_sees_what_every_shard_brought_in_shard_order(assign: tuple[int, ...]) -> None:
    found: dict[tuple[int, int], list[list[float]]] = {}

    def shard(number: int) -> None:
        for turn in range(3):
            brought = meet(f"layer {turn}", torch.tensor([float(number), 10.0 * turn]))
            found[number, turn] = [value.tolist() for value in brought]

    assert run_over(assign, shard) == [None] * len(assign)
    for turn in range(3):
        for number in range(4):
            assert found[number, turn] == [[float(other), 10.0 * turn] for other in range(4)]


def test_shards_take_turns_in_their_order() -> None:
    story: list[str] = []

    def shard(number: int) -> None:
        story.append(f"{number}a")
        meet("x", torch.zeros(1))
        story.append(f"{number}b")
        meet("y", torch.zeros(1))
        story.append(f"{number}c")

    assert run_over((3,), shard) == [None]
    assert story == ["0a", "1a", "2a", "0b", "1b", "2b", "0c", "1c", "2c"]


@pytest.mark.parametrize("assign", [(3,), (2, 1)])
def test_a_shards_random_stream_goes_on_after_a_meeting(assign: tuple[int, ...]) -> None:
    found = {}

    def shard(number: int) -> None:
        random_streams.enter("lockstep", number)
        first = torch.rand(2)
        meet("x", torch.zeros(1))
        found[number] = torch.cat([first, torch.rand(2)])

    assert run_over(assign, shard) == [None] * len(assign)
    for number, drawn in found.items():
        random_streams.enter("lockstep", number)
        assert torch.equal(drawn, torch.cat([torch.rand(2), torch.rand(2)]))


def test_a_shards_buffers_are_bound_again_after_a_meeting() -> None:
    model = nn.BatchNorm1d(2)
    buffers = Buffers(model, [torch.zeros(buffer_starts(list(model.buffers()))[-1], dtype=torch.uint8)] * 3)

    def shard(number: int) -> None:
        buffers.begin_shard()
        model.running_mean.fill_(float(number))
        meet("x", torch.zeros(1))
        assert model.running_mean.tolist() == [number, number]
        model.running_mean.add_(10)
        meet("y", torch.zeros(1))
        assert model.running_mean.tolist() == [number + 10, number + 10]

    assert run_over((3,), shard, lambda _: buffers) == [None]


def test_backward_meets_as_forward_does() -> None:
    """On the CPU backward runs in the thread that called it."""

    class Meeting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return torch.stack(meet("backward", grads[0])).sum(0)

    found = {}

    def shard(number: int) -> None:
        x = torch.zeros(2, requires_grad=True)
        (Meeting.apply(x) * (number + 1.0)).sum().backward()
        found[number] = x.grad

    assert run_over((2, 1), shard) == [None, None]
    assert all(grad is not None and grad.tolist() == [6.0, 6.0] for grad in found.values())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_failing_shard_ends_them_all_with_its_error(failing: int) -> None:
    after: list[int] = []

    def shard(number: int) -> None:
        meet("x", torch.zeros(1))
        if number == failing:
            raise ValueError(f"shard {number} is broken")
        meet("y", torch.zeros(1))
        after.append(number)

    before = threading.active_count()
    (outcome,) = run_over((3,), shard)
    assert str(outcome) == f"shard {failing} is broken"
    assert after == []
    assert threading.active_count() == before


def test_a_shard_that_fails_on_one_worker_is_a_lost_peer_on_the_other() -> None:
    def shard(number: int) -> None:
        meet("x", torch.zeros(1))
        if number == 2:
            raise ValueError("broken")
        meet("y", torch.zeros(1))

    first, second = run_over((2, 1), shard)
    assert isinstance(first, PeerLost)
    assert isinstance(second, ValueError)


def test_workers_that_stop_at_different_layers_disagree_by_name() -> None:
    def shard(number: int) -> None:
        meet("bn2 forward" if number == 2 else "bn1 forward", torch.zeros(1))

    first, second = run_over((2, 1), shard)
    assert isinstance(first, Disagreement)
    assert "worker 0 stopped at bn1 forward, worker 1 at bn2 forward" in str(first)
    assert isinstance(second, Disagreement)


def test_shards_of_one_worker_that_stop_at_different_layers_disagree_too() -> None:
    def shard(number: int) -> None:
        meet("bn2 forward" if number == 1 else "bn1 forward", torch.zeros(1))

    (outcome,) = run_over((2,), shard)
    assert isinstance(outcome, Disagreement)
    assert "one shard of worker 0 stopped at bn1 forward, another at bn2 forward" in str(outcome)


@pytest.mark.parametrize("assign", [(3,), (2, 1), (1, 2), (1, 1, 1)])
@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_shard_that_meets_less_often_than_the_others_is_an_error_and_no_hang(
    assign: tuple[int, ...], early: int
) -> None:
    """Stochastic depth, say, with a layer that one shard skips: the first of them used to wait for ever."""

    def shard(number: int) -> None:
        meet("x", torch.zeros(1))
        if number != early:
            meet("y", torch.zeros(1))

    outcomes = run_over(assign, shard)
    assert all(isinstance(outcome, Disagreement | PeerLost) for outcome in outcomes)
    assert any("the end of backward" in str(outcome) for outcome in outcomes)

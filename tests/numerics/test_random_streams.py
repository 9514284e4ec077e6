import random

import numpy as np
import pytest
import torch

from samestep.numerics import random_streams


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_a_stream_is_the_same_whatever_was_drawn_before() -> None:
    random_streams.enter(3, "step", 5, 1)
    first = draws()
    draws()
    torch.rand(17)
    random_streams.enter(3, "step", 5, 1)
    assert draws() == first


def test_streams_of_other_names_are_other_streams() -> None:
    names = [(0, "step", 1, 2), (0, "step", 2, 1), (0, "step", 12), (1, "step", 1, 2), (0, "row", 1, 2), (0, "model")]
    found = []
    for name in names:
        random_streams.enter(*name)
        found.append(tuple(draws()))
    for column in zip(*found, strict=True):
        assert len(set(column)) == len(names)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
def test_a_stream_goes_on_as_if_it_had_not_been_left(odd: bool, elsewhere: bool) -> None:
    """`odd`: Gaussians come in pairs, and the second of a pair waits in the generator."""

    def gaussians() -> list[float]:
        return [random.gauss(0, 1), float(np.random.randn()), *torch.randn(3).tolist()]

    random_streams.enter(7, "step", 1, 0)
    draws()
    if odd:
        gaussians()
    state = random_streams.leave()
    expected = gaussians() + draws() + gaussians()
    random_streams.enter(8, "step", 2, 5)
    draws()
    packed = random_streams.pack(state)
    sent = random_streams.unpack(torch.empty(packed.numel(), dtype=torch.uint8).copy_(packed)) if elsewhere else state
    random_streams.resume(sent)
    assert gaussians() + draws() + gaussians() == expected
    assert random_streams.same(sent, state), "a state may be resumed again, by a recomputation"


def test_leaving_a_stream_draws_nothing() -> None:
    random_streams.enter(7, "step", 1, 0)
    first = random_streams.leave()
    assert random_streams.same(random_streams.leave(), first)
    found = draws()
    random_streams.enter(7, "step", 1, 0)
    assert draws() == found

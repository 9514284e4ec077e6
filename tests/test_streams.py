import random

import numpy as np
import torch

from samestep import streams


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_a_stream_is_the_same_whatever_was_drawn_before() -> None:
    streams.enter(3, "step", 5, 1)
    first = draws()
    draws()
    torch.rand(17)
    streams.enter(3, "step", 5, 1)
    assert draws() == first


def test_streams_of_other_names_are_other_streams() -> None:
    names = [(0, "step", 1, 2), (0, "step", 2, 1), (0, "step", 12), (1, "step", 1, 2), (0, "row", 1, 2), (0, "model")]
    found = []
    for name in names:
        streams.enter(*name)
        found.append(tuple(draws()))
    for column in zip(*found, strict=True):
        assert len(set(column)) == len(names)

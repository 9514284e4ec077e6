"""Stages as even as a chain allows."""

from itertools import combinations, pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samestep.presets import balanced, chain_of


@given(work=st.lists(st.integers(0, 20), min_size=1, max_size=9), data=st.data())
def test_the_largest_stage_is_as_small_as_can_be(work: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(work)))
    bounds = balanced([float(w) for w in work], stages)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(work), stages + 1)
    assert all(a < b for a, b in pairwise(bounds))
    found = max(sum(work[a:b]) for a, b in pairwise(bounds))
    ways = ([0, *inner, len(work)] for inner in combinations(range(1, len(work)), stages - 1))
    assert found == min(max(sum(work[a:b]) for a, b in pairwise(way)) for way in ways)


def test_containers_are_opened_and_blocks_stay_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 4)
            blocks = [nn.TransformerEncoderLayer(4, 2, 4) for _ in range(3)]
            self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), *blocks)
            self.register_buffer("unused", torch.zeros(3))

    assert chain_of(Net()) == ["stem", "body.0.0", "body.1", "body.2", "body.3"]

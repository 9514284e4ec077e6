"""Segments, regions, and what cannot be cut."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import JobRefused, PlanRefused
from samestep.parallel.cutting.cut import Cut, cut
from samestep.parallel.cutting.recorder import record


def cut_up(model: nn.Module, starts: tuple[str, ...] = (), **slices: tuple[int, ...]) -> Cut:
    sliced = {name.replace("_", "."): counts for name, counts in slices.items()}
    recording = record(model, lambda m, b: m(b[0]), (torch.randn(3, 4),), list(starts), list(sliced))
    return cut(recording, model, 1 + len(starts), sliced)


def linears(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *between, nn.Linear(8, 2))


def regions(found: Cut) -> list[tuple[str, ...]]:
    return [segment.region.layers for segment in found.segments if segment.region is not None]


def test_two_sliced_layers_with_elementwise_between_are_one_region() -> None:
    model = linears(nn.ReLU(), nn.Dropout(0.1))
    assert regions(cut_up(model, **{"0": (2, 2), "3": (2, 2)})) == [("0", "3")]
    assert cut_up(model, **{"0": (2, 2), "3": (2, 2)}).sliced == [(False, True, False)]


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.Softmax(-1), nn.Linear(8, 8)])
def test_anything_else_between_ends_the_region(between: nn.Module) -> None:
    assert regions(cut_up(linears(between), **{"0": (2, 2), "2": (2, 2)})) == [("0",), ("2",)]


def test_different_slices_make_two_regions() -> None:
    assert regions(cut_up(linears(nn.ReLU()), **{"0": (2, 2), "2": (3, 1)})) == [("0",), ("2",)]


class Skip(nn.Module):
    """The hidden value is used twice; the input skips two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        y = F.relu(self.b(first))
        z = self.c(y)
        return self.d(z + y) + first


def test_a_value_with_another_consumer_ends_the_region() -> None:
    assert regions(cut_up(Skip(), b=(2, 2), c=(2, 2))) == [("b",), ("c",)]


def test_what_skips_a_stage_crosses_every_cut_on_its_way() -> None:
    found = cut_up(Skip(), ("b", "c", "d"))
    assert [len(crossing) for crossing in found.crossings] == [1, 2, 2]
    assert found.crossings[0][0] in found.crossings[2]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.b(self.a(x)))


def test_a_layer_used_in_two_stages_is_refused_with_both_places() -> None:
    with pytest.raises(
        JobRefused, match=r"a.weight is used in stages 0 and 1 \(at test_cut.py:\d+ and test_cut.py:\d+"
    ):
        cut_up(Twice(), ("b",))


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))


def changed_and_handed_on(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    z = model.b(batch[0])
    y.add_(z)
    return model.c(z) + y


def changed_under_another_name(model: Any, batch: Any) -> Tensor:
    y = model.a(batch[0])
    rows = y.view(-1)
    z = model.b(batch[0])
    y.add_(z)
    return model.c(z) + rows.view_as(z)


def test_a_change_in_place_happens_to_a_copy_on_this_side_of_a_cut() -> None:
    recording = record(Three(), changed_and_handed_on, (torch.randn(3, 4),), ["b", "c"], [])
    assert cut(recording, Three(), 3, {}).segments[1].changes


def test_a_change_in_place_that_is_seen_over_there_under_another_name_is_handed_on() -> None:
    recording = record(Three(), changed_under_another_name, (torch.randn(3, 4),), ["b", "c"], [])
    found = cut(recording, Three(), 3, {})
    middle = found.segments[1]
    assert len(middle.changes) == 2
    assert len(middle.views) == 1, "one copy serves both names"
    assert middle.changes & set(middle.gives)


def test_gradients_switched_off_over_a_cut_are_refused() -> None:
    def forward(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            y = model[0](batch[0])
            y = model[1](y)
        return model[2](y)

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(JobRefused, match=r"torch.no_grad\(\) begun at test_cut.py:\d+ reaches over a cut"):
        cut(record(model, forward, (torch.randn(3, 4),), ["1"], []), model, 2, {})


def test_a_stage_that_forward_never_reaches_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    recording = record(model, lambda m, b: m[0](b[0]), (torch.randn(3, 4),), ["1"], [])
    with pytest.raises(PlanRefused, match="forward begins only 1 of 2 stages"):
        cut(recording, model, 2, {})


def test_a_layer_used_on_both_sides_of_a_slice_is_refused() -> None:
    with pytest.raises(JobRefused, match=r"parameter a.weight is used on both sides of a slice \(at test_cut.py:\d+"):
        cut_up(Twice(), b=(2,))


def test_the_row_layers_bias_is_added_to_the_sum_once_by_whoever_has_the_rows() -> None:
    found = cut_up(linears(nn.ReLU()), **{"0": (2, 2), "2": (2, 2)})
    region, (addition,) = found.segments[1].region, found.segments[2].calls
    assert region is not None
    assert (addition.what, addition.names, addition.takes) == (torch.add, {"2.bias"}, {region.makes})


def test_what_forward_does_not_use_lives_in_no_region() -> None:
    """A slice's gradients come by sets of shards, those of everything else by shards."""

    class Leaving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never, self.unused = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2)
            self.used, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.used(x).relu())

    found = cut_up(Leaving(), used=(2, 2))
    unused = [found.homes[name] for name in ("never", "unused.weight", "unused.bias")]
    assert not [home for home in unused if found.segments[home].is_sliced]


def test_a_value_that_forward_returns_ends_the_region() -> None:
    model = linears()
    recording = record(model, lambda m, b: (h := m[0](b[0]), m[1](h)), (torch.randn(3, 4),), [], ["0", "1"])
    found = cut(recording, model, 1, {"0": (2, 2), "1": (2, 2)})
    assert regions(found) == [("0",), ("1",)]


def test_a_stages_slices_and_the_next_stages_are_apart() -> None:
    found = cut_up(linears(), ("1",), **{"0": (2, 2), "1": (2, 2)})
    assert regions(found) == [("0",), ("1",)]
    assert found.sliced == [(False, True, False), (False, True, False)]


def test_values_are_kept_for_later_segments_and_for_the_cut_and_no_longer() -> None:
    found = cut_up(Skip(), ("c",), b=(2, 2))
    first = found.segments[0].gives[0]
    assert first in found.needed_after(0)
    assert first in found.needed_after(2), "the next stage wants it"
    assert found.needed_after(len(found.segments) - 1) == frozenset()


def test_the_way_is_the_same_for_other_shapes_and_another_for_other_layers() -> None:
    model = linears(nn.ReLU())
    ways = [
        cut(record(model, forward, (torch.randn(rows, 4),), [], []), model, 1, {})
        for forward, rows in [
            (lambda m, b: m(b[0]), 3),
            (lambda m, b: m(b[0]), 7),
            (lambda m, b: m[2](m[0](b[0])), 3),
        ]
    ]
    assert not ways[0].differs_from(ways[1])
    assert not ways[0].differs_from(ways[2]), "the same segment, on another way"

"""Who gives what to whom between hosts: every element to everyone who needs it, once, and never to one's own host."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_layout import layout_of
from torch import Tensor

from samestep.numerics.reduction_tree import Node, fold_plan, promoted, tree_sum
from samestep.parallel.gradients.host_routes import host_partials
from samestep.parallel.gradients.layout import CHUNK, Layout
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.stretches import Stretch, Stretches, by_host, is_first, owners

SIZES = st.integers(1, 300) | st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 7 * CHUNK + 5])


class Case:
    """Workers on hosts, parameters, whose gradients come from where, and who updates what."""

    def __init__(self, hosts: tuple[int, ...], layout: Layout, homes: list[Ownership], *, whole: bool) -> None:
        self.hosts, self.layout, self.homes = hosts, layout, homes
        self.pieces = owners(layout, homes, hosts, whole=whole)
        self.stretches = Stretches(layout, homes, hosts, self.pieces)

    def __repr__(self) -> str:
        sizes = [entry.param.numel() for entry in self.layout.entries]
        tied = [entry.tied_to for entry in self.layout.entries]
        return f"Case({self.hosts}, sizes {sizes}, tied {tied}, {self.homes}, pieces {self.pieces})"

    def updating(self, entry: int) -> list[int]:
        """The hosts whose workers bring its gradient, of the name that holds the values."""
        return list(by_host(self.homes[entry].workers, self.hosts))

    def using(self, entry: int) -> set[int]:
        """The hosts that compute with the values, under any name."""
        names = (entry, *self.layout.aliases(entry))
        return {self.hosts[rank] for name in names for rank in self.homes[name].workers}

    def size(self, entry: int) -> int:
        return int(self.layout.entries[entry].param.numel())


@st.composite
def cases(draw: st.DrawFn, min_hosts: int = 1, max_hosts: int = 4) -> Case:
    num_hosts = draw(st.integers(min_hosts, max_hosts))
    rest = draw(st.lists(st.integers(0, num_hosts - 1), max_size=7 - num_hosts))
    hosts = tuple(draw(st.permutations([*range(num_hosts), *rest])))
    sizes = draw(st.lists(SIZES, min_size=1, max_size=6))
    tied = draw(st.sets(st.integers(1, len(sizes) - 1), max_size=2)) if len(sizes) > 1 else set()
    sizes = [sizes[0] if i in tied else size for i, size in enumerate(sizes)]
    group = st.lists(st.sampled_from(range(len(hosts))), min_size=1, unique=True)
    groups = draw(st.lists(group, min_size=1, max_size=3))
    known = [Ownership(tuple(range(len(hosts))), (1,) * len(hosts))]  # of a plan without stages
    known += [
        Ownership(tuple(workers), (2,) * len(workers), draw(st.booleans()) and len(workers) == 1) for workers in groups
    ]
    homes = [draw(st.sampled_from(known)) for _ in sizes]
    return Case(hosts, layout_of(sizes, tuple(tied)), homes, whole=draw(st.booleans()))


def covered(parts: list[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether the parts are start..stop-1, each element once."""
    inside = sorted(parts)
    ends = [start, *(b for _, b in inside)]
    return all(a == end < b for (a, b), end in zip(inside, ends, strict=False)) and ends[-1] == stop


@given(cases())
def test_every_element_is_updated_once_by_each_of_two_hosts_or_once_by_one_worker_of_all(case: Case) -> None:
    for entry, _ in case.layout.owners():
        updating = case.updating(entry)
        for hosts in [[host] for host in updating] if len(updating) <= 2 else [updating]:
            own = [
                (piece.start, piece.stop)
                for rank, pieces in enumerate(case.pieces)
                for piece in pieces
                if piece.entry == entry and case.hosts[rank] in hosts
            ]
            assert covered(own, 0, case.size(entry))
    for rank, pieces in enumerate(case.pieces):
        assert [piece.entry for piece in pieces] == sorted({piece.entry for piece in pieces})
        assert all(rank in case.homes[piece.entry].workers for piece in pieces)


@given(cases())
def test_sums_of_every_element_reach_everyone_who_updates_it_from_every_other_host_once(case: Case) -> None:
    wanted: list[Stretch] = []
    for rank, pieces in enumerate(case.pieces):
        for piece in pieces:
            for name in (piece.entry, *case.layout.aliases(piece.entry)):
                for host in set(by_host(case.homes[name].workers, case.hosts)) - {case.hosts[rank]}:
                    found = [
                        s
                        for s in case.stretches.gradients
                        if (s.receiver, s.entry, case.hosts[s.sender]) == (rank, name, host)
                    ]
                    parts = [(s.start, s.stop) for s in found if piece.start <= s.start and s.stop <= piece.stop]
                    assert covered(parts, piece.start, piece.stop), (rank, piece, name, host)
                    wanted += found
    assert Counter(wanted) == Counter(case.stretches.gradients), "and nothing else travels"


@given(cases())
def test_nobody_sends_to_the_own_host(case: Case) -> None:
    kinds = (case.stretches.gradients, case.stretches.values, case.stretches.everywhere)
    for stretch in (s for kind in kinds for s in kind):
        assert case.hosts[stretch.sender] != case.hosts[stretch.receiver]
        assert stretch.start < stretch.stop


@given(cases())
def test_one_worker_of_a_host_brings_the_sums_of_an_element_together_however_many_want_them(case: Case) -> None:
    """In the host's memory: two of them would add the same sums up twice."""
    senders: dict[tuple[int, int, int], set[int]] = {}
    for s in case.stretches.gradients:
        for chunk in range(s.start // CHUNK, -(-s.stop // CHUNK)):
            senders.setdefault((case.hosts[s.sender], s.entry, chunk), set()).add(s.sender)
    assert all(len(who) == 1 for who in senders.values())


@given(cases())
def test_no_worker_of_a_host_that_updates_a_stretch_adds_up_what_another_one_there_reads(case: Case) -> None:
    """Where sums leave a host that also updates the same elements, the one who updates them sends them."""
    for s in case.stretches.gradients:
        for rank, pieces in enumerate(case.pieces):
            if case.hosts[rank] != case.hosts[s.sender] or rank == s.sender:
                continue
            for piece in pieces:
                if s.entry in (piece.entry, *case.layout.aliases(piece.entry)):
                    assert s.stop <= piece.start or piece.stop <= s.start, (s, rank, piece)


@given(cases())
def test_new_values_reach_every_host_that_does_not_make_them_once(case: Case) -> None:
    """Those that compute with them in every step, the others only when they are asked for."""
    for entry, _ in case.layout.owners():
        for host in set(case.hosts):
            made = [
                (piece.start, piece.stop)
                for rank, pieces in enumerate(case.pieces)
                for piece in pieces
                if piece.entry == entry and case.hosts[rank] == host
            ]
            used = host in case.using(entry)
            kind, other = case.stretches.values, case.stretches.everywhere
            kind, other = (kind, other) if used else (other, kind)
            got = [(s.start, s.stop) for s in kind if s.entry == entry and case.hosts[s.receiver] == host]
            assert covered([*made, *got], 0, case.size(entry)), (entry, host, made, got)
            assert not [s for s in other if s.entry == entry and case.hosts[s.receiver] == host]
    for s in (*case.stretches.values, *case.stretches.everywhere):
        mine = [piece for piece in case.pieces[s.sender] if piece.entry == s.entry]
        assert any(piece.start <= s.start and s.stop <= piece.stop for piece in mine), "whoever sends it has made it"


@given(cases(max_hosts=2))
def test_between_two_hosts_no_values_travel_that_both_can_make(case: Case) -> None:
    made_by_both = {entry for entry, _ in case.layout.owners() if case.using(entry) == {*case.updating(entry)}}
    assert not [s for s in case.stretches.values if s.entry in made_by_both]


@given(cases(max_hosts=1))
def test_one_host_sends_nothing(case: Case) -> None:
    assert [*case.stretches.gradients, *case.stretches.values, *case.stretches.everywhere] == []


@given(cases())
def test_one_host_of_those_that_update_the_same_is_the_first(case: Case) -> None:
    for home in case.homes:
        groups = by_host(home.workers, case.hosts)
        first = {host for host, ranks in groups.items() if any(is_first(home, case.hosts, rank) for rank in ranks)}
        assert len(first) == (1 if len(groups) == 2 else len(groups))


@pytest.mark.parametrize("per_host", [1, 2, 3])
@pytest.mark.parametrize("num_hosts", [2, 3, 4])
def test_equal_hosts_send_and_get_as_many_bytes_as_in_a_ring(num_hosts: int, per_host: int) -> None:
    """The formula of the docstring, with one parameter that can be cut into as many parts as there are workers."""
    workers = num_hosts * per_host
    hosts = tuple(rank // per_host for rank in range(workers))
    total = 12 * 3 * CHUNK
    home = Ownership(tuple(range(workers)), (1,) * workers)
    for sizes in ([total], [total // 3, total // 3 * 2], [CHUNK] * 36):
        case = Case(hosts, layout_of(sizes), [home] * len(sizes), whole=False)
        sent, got = Counter[int](), Counter[int]()
        for s in (*case.stretches.gradients, *case.stretches.values):
            sent[hosts[s.sender]] += s.stop - s.start
            got[hosts[s.receiver]] += s.stop - s.start
        formula = total if num_hosts == 2 else 2 * (num_hosts - 1) * total // num_hosts
        assert sent == got == dict.fromkeys(range(num_hosts), formula)


# -------------------------------------------------------------------- what a host's workers bring together


@st.composite
def spread_homes(draw: st.DrawFn) -> tuple[Ownership, tuple[int, ...], int]:
    """A home, the hosts of its workers, and the number of units in a step."""
    workers = draw(st.permutations(range(draw(st.integers(1, 6)))))
    assign = draw(st.lists(st.integers(0, 5), min_size=len(workers), max_size=len(workers)).filter(any))
    hosts = draw(st.lists(st.integers(0, 2), min_size=len(workers), max_size=len(workers)))
    return Ownership(tuple(workers), tuple(assign)), tuple(hosts), draw(st.integers(1, sum(assign)))


def folded(values: Sequence[Tensor], nodes: Sequence[Node], units: int) -> list[Tensor]:
    """What is left of sums, written down anew: a stack of nodes."""
    stack: list[tuple[Node, Tensor]] = []
    for first, own in zip(nodes, values, strict=True):
        node, value = promoted(first, units), own
        while stack and node.index % 2 and stack[-1][0] == Node(node.level, node.index - 1):
            value = stack.pop()[1] + value
            node = promoted(Node(node.level + 1, node.index >> 1), units)
        stack.append((node, value))
    return [value for _, value in stack]


@given(spread_homes(), st.integers(0, 1000))
def test_sums_of_hosts_joined_are_the_tree(case: tuple[Ownership, tuple[int, ...], int], seed: int) -> None:
    home, hosts, units = case
    gradients = list(torch.randn(units, generator=torch.Generator().manual_seed(seed)))
    sums: dict[tuple[int, int], Tensor] = {}  # by holder
    nodes, holders = home.published(units)
    for rank in home.workers:
        own = home.units_of(rank, units)
        left = folded(gradients[own.start : own.stop], [Node(0, unit) for unit in own], units)
        sums |= {(rank, slot): value for slot, value in enumerate(left)}
    arrived: dict[Node, Tensor] = {}
    for host in dict.fromkeys(hosts[rank] for rank in home.workers):
        here = [(n, h) for n, h in zip(nodes, holders, strict=True) if hosts[h[0]] == host]
        how = host_partials(home, host, hosts, units)
        assert how.holders == tuple(h for _, h in here)
        values = folded([sums[h] for _, h in here], [n for n, _ in here], units)
        assert len(values) == len(how.left)
        arrived |= {node: value for (node, _), value in zip(how.left, values, strict=True)}
        assert len({i for _, i in how.left}) == len(how.left), "each in a slot of its own"
    order = sorted(arrived, key=Node.first_shard)
    [root] = folded([arrived[node] for node in order], order, units)
    assert torch.equal(root, tree_sum(gradients))


@given(spread_homes())
def test_a_host_gives_as_few_sums_as_the_tree_allows(case: tuple[Ownership, tuple[int, ...], int]) -> None:
    home, hosts, units = case
    for host in {hosts[rank] for rank in home.workers}:
        left = tuple(node for node, _ in host_partials(home, host, hosts, units).left)
        assert fold_plan(left, units).left == left, "none of them can be added to another"

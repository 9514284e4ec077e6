"""Many numbers of workers: the search over large clusters, the list of numbers, the table and the picture."""

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest

from planner.drawn import even_chain, uniform
from samestep.commands.simulate import counts_of
from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.roofline import roofline_costs
from samestep.planner.explain.scaling_text import svg, text
from samestep.planner.search.scaling import doubling, scaling
from samestep.planner.search.scaling_curve import Scaling
from samestep.planner.search.search import PlanningProblem, SearchSpace, search
from samestep.system.json_values import value_from


def found_for(chain: Chain, cluster: Cluster, counts: tuple[int, ...]) -> Scaling:
    problem = PlanningProblem(chain, roofline_costs(chain, cluster), cluster, Numerics(shards=chain.shards))
    return scaling(problem, SearchSpace(()), counts, "made up")


def test_the_search_takes_a_thousand_workers() -> None:
    chain, cluster = even_chain(8, 1024), uniform(1024, 8)
    freedom = SearchSpace((1024,), may_cut=False)
    best = search(PlanningProblem(chain, roofline_costs(chain, cluster), cluster, Numerics(shards=1024)), freedom)[0]
    assert best.kind == "data"
    assert best.plan.workers == 1024


def test_more_workers_are_never_slower_and_one_is_the_measure() -> None:
    found = found_for(even_chain(6, 8), uniform(32, 4), (1, 2, 3, 8, 16, 32))
    seconds = [p.seconds for p in found.points]
    assert seconds == sorted(seconds, reverse=True)
    assert found.points[0].efficiency == 1.0
    for p in found.points:
        assert p.used <= p.workers
        assert p.efficiency == pytest.approx(seconds[0] / p.seconds / p.workers)
        assert p.rows_per_second == pytest.approx(found.batch_size / p.seconds)
        assert sum(p.parts.values()) == pytest.approx(p.seconds)


def test_a_number_that_is_not_asked_for_is_not_shown() -> None:
    assert [p.workers for p in found_for(even_chain(3, 4), uniform(6, 2), (2, 6)).points] == [2, 6]


def test_more_workers_than_shards_are_explained() -> None:
    found = text(found_for(even_chain(3, 4), uniform(8, 2), (1, 8)))
    assert "4 shards feed at most 4 workers by data parallelism" in found
    assert "--shards 8 would feed 8" in found
    assert "feed at most" not in text(found_for(even_chain(3, 4), uniform(8, 2), (1, 4)))


def test_the_picture_is_svg_with_a_mark_for_every_number() -> None:
    root = ET.fromstring(svg(found_for(even_chain(3, 4), uniform(4, 2), (1, 2, 4))))
    assert len([node for node in root.iter() if node.tag.endswith("circle")]) == 3


def test_a_picture_of_one_number() -> None:
    ET.fromstring(svg(found_for(even_chain(3, 4), uniform(1, 1), (1,))))


def test_it_travels_as_json() -> None:
    found = found_for(even_chain(3, 4), uniform(4, 2), (1, 4))
    assert value_from(Scaling, json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ("1", (1,)),
        ("1,2,4,...,32", (1, 2, 4, 8, 16, 32)),
        ("1,3, ..., 20", (1, 3, 6, 12, 20)),
        ("5,7", (5, 7)),
        ("1,2,...,2", (1, 2)),
    ],
)
def test_dots_double(words: str, counts: tuple[int, ...]) -> None:
    assert counts_of(words) == counts


@pytest.mark.parametrize("words", ["", "0", "-1", "2,1", "2,2", "1,...", "...,4", "1,,2", "1,x", "1.5", "1,2,...,1"])
def test_other_lists_are_refused_with_the_place(words: str) -> None:
    with pytest.raises(PlanRefused, match="at place"):
        counts_of(words)


def test_numbers_to_try() -> None:
    assert doubling(5) == (1, 2, 3, 4, 5)
    assert doubling(100) == (*range(1, 17), 32, 64, 100)


def test_workers_that_a_partition_leaves_idle_in_front_are_no_plan() -> None:
    """The search goes on without such a split."""
    hosts = (Host("a", 4, 2, 10**9, (), 1e9, 1e9), Host("b", 4, 1, 10**9, (), 1e9, 1e9))
    cluster = Cluster(hosts, within=Link(1e-3, 1e7), between=Link(0.0, 1e7))
    chain = even_chain(2, 1)
    found = search(
        PlanningProblem(chain, roofline_costs(chain, cluster), cluster, Numerics(shards=1)), SearchSpace((1, 2, 3))
    )
    assert found[0].seconds > 0

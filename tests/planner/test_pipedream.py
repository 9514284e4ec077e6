"""PipeDream's own plans cost what was published, and ours are never worse; other files of the form are read too."""

import json
import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT.parent / "shared" / "data" / "published" / "pipedream-profiles"
sys.path.insert(0, str(ROOT / "benchmarks" / "pipedream"))

from layer_graph import Malformed, cuts, read  # noqa: E402
from score import best, costs_of, score, stage_seconds  # noqa: E402

from samestep.planner.search.stage_costs import StageSpan  # noqa: E402

needs_profiles = pytest.mark.skipif(not PROFILES.is_dir(), reason="PipeDream's profiles are not beside the project")

# (layers, workers) of each stage; seconds, or times the speed of one worker: as PipeDream's optimizer prints them
PUBLISHED = [
    ("alexnet", [(0, 6, 2), (6, 9, 1), (9, 22, 1)], "0.02290 s"),
    ("vgg16", [(0, 15, 3), (15, 40, 1)], "0.17450 s"),
]
REACHED = [("alexnet", 4, 3.73), ("vgg16", 4, 3.85), ("vgg16", 8, 7.20), ("resnet50", 4, 3.98), ("gnmt", 4, 3.46)]
FIELDS = "forward_compute_time={}, backward_compute_time={}, activation_size={}, parameter_size={}"


def line(
    name: str, forward: float, backward: float, activation: object, parameters: float, what: str = "Linear"
) -> str:
    return f"{name} -- {what} -- " + FIELDS.format(forward, backward, activation, parameters)


def profile(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@needs_profiles
@pytest.mark.parametrize(("model", "stages", "seconds"), PUBLISHED)
def test_pipedreams_own_plan_costs_what_it_printed(
    model: str, stages: list[tuple[int, int, int]], seconds: str
) -> None:
    graph = read(PROFILES / f"{model}.txt")
    costs = costs_of(graph, cuts(graph), 4)
    times = [stage_seconds(costs, StageSpan(first, end - 1, range(workers))) for first, end, workers in stages]
    assert f"{max(times):.5f} s" == seconds


@needs_profiles
@pytest.mark.parametrize(("model", "workers", "times"), REACHED)
def test_no_plan_is_worse_than_pipedreams(model: str, workers: int, times: float) -> None:
    found = score(PROFILES / f"{model}.txt", workers)
    assert found["one_worker_seconds"] / found["step_seconds"] >= times - 0.005
    assert sum(stage["workers"] for stage in found["plan"]) <= workers


@needs_profiles
def test_data_parallel_times_are_the_published_ones() -> None:
    for model, times in (("alexnet", "0.51"), ("vgg16", "1.34")):
        found = score(PROFILES / f"{model}.txt", 4)
        assert f"{found['one_worker_seconds'] / found['data_parallel_seconds']:.2f}" == times


@needs_profiles
@pytest.mark.parametrize("model", ["squeezenet1_0", "gnmt"])
def test_every_layer_is_in_one_stage_and_no_edge_leads_back(model: str) -> None:
    graph = read(PROFILES / f"{model}.txt")
    found = score(PROFILES / f"{model}.txt", 5)
    of = {name: place for place, stage in enumerate(found["plan"]) for name in stage["nodes"]}
    assert sorted(of) == sorted(node.name for node in graph.nodes)
    assert all(of[node] <= of[reader] for node in of for reader in graph.readers[node])


def test_a_branch_can_be_cut_anywhere_and_each_tensor_crosses_once(tmp_path: Path) -> None:
    """2 feeds 3 and 4, which 5 joins: the cuts are {}, 2, 23, 24, 234, 2345."""
    path = profile(
        tmp_path / "branch.txt",
        line("node1", 9, 9, 9, 9, "Input"),
        *(line(f"node{n}", 1, 1, activation, 0) for n, activation in ((2, "[3.0; 4.0]"), (3, 10), (4, 20), (5, 1))),
        *("\tnode1 -- node2", "\tnode2 -- node3", "\tnode2 -- node4", "\tnode3 -- node5", "\tnode4 -- node5"),
    )
    graph = read(path)
    where = cuts(graph)
    costs = costs_of(graph, where, 2)
    crossing = {
        frozenset(n.name[-1] for n, on in zip(graph.nodes, row, strict=True) if on): float(size)
        for row, size in zip(where.before, costs.crossing_bytes, strict=True)
    }
    assert crossing == {
        frozenset(): 0,
        frozenset("2"): 7,
        frozenset("23"): 17,
        frozenset("24"): 27,
        frozenset("234"): 30,
        frozenset("2345"): 0,
    }
    parallel = costs.no_stage[[row.sum() == 2 for row in where.before]][:, [row.sum() == 2 for row in where.before]]
    assert (parallel == math.inf).all()


def test_a_chain_gets_the_best_of_all_plans(tmp_path: Path) -> None:
    draw = random.Random(0)
    layers = [
        (draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 9) * 1e6, draw.randint(0, 9) * 1e6) for _ in range(6)
    ]
    names = [f"n{i}" for i in range(6)]
    path = profile(
        tmp_path / "chain.txt",
        *(line(name, *layer) for name, layer in zip(names, layers, strict=True)),
        *(f"\t{a} -- {b}" for a, b in pairwise(names)),
    )

    def seconds(first: int, end: int, m: int) -> float:
        own = layers[first:end]
        compute = sum(forward + backward for forward, backward, _, _ in own) / 1000
        return (compute + 4 * (m - 1) * sum(layer[3] for layer in own) / (1.25e9 * m)) / m

    def least(first: int, workers: int, transfers: bool) -> float:
        whole = min((seconds(first, 6, m) for m in range(1, workers + 1)), default=math.inf)
        cut = [
            max(seconds(first, end, m), 2 * layers[end - 1][2] / 1.25e9 * transfers, least(end, workers - m, transfers))
            for end in range(first + 1, 6)
            for m in range(1, workers)
        ]
        return min([whole, *cut])

    found = score(path, 5)
    assert found["step_seconds"] == pytest.approx(least(0, 5, False))
    assert found["with_transfers"]["step_seconds"] == pytest.approx(least(0, 5, True))
    assert found["data_parallel_seconds"] == pytest.approx(seconds(0, 6, 5))
    graph = read(path)
    assert best(costs_of(graph, cuts(graph), 1)).bottleneck == pytest.approx(seconds(0, 6, 1))


def test_a_graph_with_too_many_cuts_is_cut_along_one_order(tmp_path: Path) -> None:
    path = profile(tmp_path / "wide.txt", *(line(f"n{i}", 1, 1, 1, 0) for i in range(16)))
    where = cuts(read(path))
    assert where.one_order
    assert [int(row.sum()) for row in where.before] == list(range(17))
    assert score(path, 4)["step_seconds"] == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["# not a profile"], "bad.txt:1: neither a node"),
        ([line("n1", "fast", 1, 1, 1)], "bad.txt:1: 'fast' is no number"),  # type: ignore[arg-type]
        ([line("n1", -1, 1, 1, 1)], "bad.txt:1: -1: times and sizes are finite and not negative"),
        ([line("n1", 1, 1, 1, 1)] * 2, "bad.txt:2: n1 is there twice"),
        ([line("n1", 1, 1, 1, 1), "\tn1 -- n2"], "bad.txt:2: an edge"),
        ([line("n1", 1, 1, 1, 1), line("n2", 1, 1, 1, 1), "\tn1 -- n2", "\tn2 -- n1"], "form a cycle"),
        ([line("n1", 1, 1, 1, 1, "Input0")], "no layer in it"),
    ],
)
def test_what_is_no_profile_is_said_with_its_place(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        read(profile(tmp_path / "bad.txt", *lines))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks" / "pipedream" / "score.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


def test_the_command_prints_one_json_line(tmp_path: Path) -> None:
    path = profile(tmp_path / "one.txt", line("n1", 1, 2, 1, 0))
    done = command(str(path), "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["step_seconds"] == found["data_parallel_seconds"] == 0.003


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere.txt", "4"], "cannot read the profile"), (["x", "0"], "WORKERS = '0'"), (["x"], "usage:")],
)
def test_the_command_refuses_with_one_line(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1

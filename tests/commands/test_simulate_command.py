"""`samestep simulate` and `samestep plan --cluster`, as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Command, Ended

CLUSTER = """
[[host]]
name = "node"
count = 4
cores = 2
workers = 2
memory = "8 GB"
flops = "40 GFLOP/s"
memory_bandwidth = "20 GB/s"

[within]
latency = "10 us"
bandwidth = "5 GB/s"

[between]
latency = "50 us"
bandwidth = "10 Gbit/s"
"""

HUGE = '''
"""102 GB of weights."""

import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import samestep


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(400_000_000, 64), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def job() -> samestep.Job:
    data = TensorDataset(torch.zeros(256, 4, dtype=torch.long), torch.zeros(256, dtype=torch.long))
    return samestep.Job(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: optim.SGD(params, 0.1),
        data=data,
        batch_size=64,
        shards=4,
        steps=3,
    )
'''

SMALL = HUGE.replace("400_000_000", "100").replace("102 GB", "Some")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "small.py").write_text(SMALL)
    (tmp_path / "huge.py").write_text(HUGE)
    return Command(tmp_path)


def last_line(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return found


def test_a_described_cluster(command: Command) -> None:
    ended = command.run(
        "simulate",
        "small.py",
        "--cluster",
        "cluster.toml",
        "--workers",
        "1,2,...,8",
        "--json",
        "--svg",
        "curve.svg",
        cold=True,
    )
    found = last_line(ended)
    assert found["costs"] == "described"
    assert [p["workers"] for p in found["points"]] == [1, 2, 4, 8]
    assert "4 shards feed at most 4 workers" in ended.out
    assert (command.folder / "curve.svg").read_text().startswith("<svg")


def test_a_model_that_no_memory_holds(command: Command) -> None:
    """Only its shapes are looked at."""
    found = last_line(command.run("simulate", "huge.py", "--cluster", "cluster.toml", "--workers", "1,2", "--json"))
    assert found["units"] == 3
    assert found["points"][0]["seconds"] > 1  # its update alone


def test_a_plan_for_another_cluster_names_its_workers_and_hosts(command: Command) -> None:
    ended = command.run("plan", "small.py", "--cluster", "cluster.toml", "--workers", "4")
    assert ended.code == 0, ended.err
    assert "assign = [1, 1, 1, 1]" in ended.out or "[[stage]]" in ended.out
    assert "of that between hosts" in ended.out


def test_a_profile_of_another_torch_is_refused(command: Command) -> None:
    measured = ("--cluster", "cluster.toml", "--workers", "1", "--profile", "profile.json")
    assert command.run("simulate", "small.py", *measured).code == 0
    file = command.folder / "profile.json"
    fields = json.loads(file.read_text())
    fields["ground"]["torch"] = "1.0"
    file.write_text(json.dumps(fields))
    ended = command.run("simulate", "small.py", *measured)
    assert ended.code == 2
    assert "measured with torch 1.0, this run has" in ended.err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (CLUSTER.replace('"10 Gbit/s"', '"-10 Gbit/s"'), "bandwidth"),
        (CLUSTER.replace("cores", "kernels"), "unknown key kernels"),
        (CLUSTER.partition("[between]")[0], "no link leads from node0 to node1"),
        ("[[host", "is not TOML"),
    ],
)
@pytest.mark.parametrize("name", ["simulate", "plan"])
def test_a_cluster_that_is_none(command: Command, name: str, wrong: str, says: str) -> None:
    (command.folder / "cluster.toml").write_text(wrong)
    ended = command.run(name, "small.py", "--cluster", "cluster.toml")
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert says in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "--workers", "1,9"], "9 workers of a cluster that has 8"),
        (["plan", "--workers", "9"], "9 workers of a cluster that has 8"),
        (["simulate", "--workers", "4,2"], "at place 2"),
        (["simulate", "--svg", "nowhere/curve.svg"], "must be a folder"),
    ],
)
def test_what_cannot_be_asked_for(command: Command, arguments: list[str], says: str) -> None:
    ended = command.run(arguments[0], "small.py", "--cluster", "cluster.toml", *arguments[1:])
    assert ended.code == 2
    assert says in ended.err


def test_a_description_needs_speeds(command: Command) -> None:
    bare = "\n".join(line for line in CLUSTER.splitlines() if not line.startswith(("flops", "memory_bandwidth")))
    (command.folder / "cluster.toml").write_text(bare)
    ended = command.run("simulate", "small.py", "--cluster", "cluster.toml", "--described")
    assert ended.code == 2
    assert "host node0 has no flops" in ended.err


def test_described_without_a_cluster(command: Command) -> None:
    ended = command.run("plan", "small.py", "--described")
    assert ended.code == 2
    assert "add --cluster FILE" in ended.err

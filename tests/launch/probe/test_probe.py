"""A probe is a short run of the real executor that leaves nothing behind."""

import dataclasses
import os
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import samestep
from jobs import grids
from samestep.errors import TrainingFailed
from samestep.launch.probe.probe import Probe, probe
from samestep.numerics import random_streams
from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, Stage, equal_shares

torch.set_num_threads(1)  # this process is forked


def seen(job: samestep.Job, workers: int = 2, stages: tuple[Stage, ...] = (), least_steps: int = 2) -> Probe:
    job = dataclasses.replace(job, shards=job.resolved_shards())
    assert job.shards is not None
    random_streams.enter(job.seed, "model")
    numerics = Numerics(
        seed=job.seed, shards=job.shards, precision=job.precision, sync_batchnorm=job.sync_batchnorm, codec=job.codec
    )
    plan = Plan.staged(numerics, stages) if stages else Plan(numerics, equal_shares(job.shards, workers))
    return probe(job, plan, job.build_model(), 0.0, least_steps)


def actions(found: Probe, rank: int) -> set[str]:
    return {sample.action for sample in found.samples[rank]}


def test_every_action_of_every_worker_is_seen() -> None:
    found = seen(grids.cnn())
    assert found.steps >= 2
    for rank in (0, 1):
        assert actions(found, rank) == {
            "Load", "Forward", "Backward", "Agree", "Reduce", "MergeBuffers", "Clip", "Update", "Publish",
        }  # fmt: skip
        assert {s.shard for s in found.samples[rank] if s.action == "Forward"} == set(range(4 * rank, 4 * rank + 4))
        assert all(s.busy >= 0 and s.start <= s.stop for s in found.samples[rank])


def children() -> set[int]:
    """Processes that this one has started; other tests have some, too."""
    return {child.pid for child in psutil.Process().children()}


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, the generators, the folder, processes, open files."""
    monkeypatch.chdir(tmp_path)
    job = dataclasses.replace(grids.cnn(), shards=grids.SHARDS)
    random_streams.enter(job.seed, "model")
    model = job.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    others = children()
    state, files = random_streams.leave(), len(list(Path("/proc/self/fd").iterdir()))
    probe(job, Plan(Numerics(shards=8), (4, 4)), model, 0.0)
    assert random_streams.same(random_streams.leave(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert children() == others


def forbidden(*_: object) -> None:
    raise AssertionError("a probe does not call it")


class Forbidden(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("a probe does not evaluate")


def test_callbacks_and_evaluation_are_not_for_probes() -> None:
    job = dataclasses.replace(grids.mlp(), callbacks=[forbidden], evaluate=Forbidden(), metrics={"any": forbidden})
    assert seen(job).steps >= 2


@pytest.mark.parametrize("steps", [1, 2])
def test_a_job_may_be_shorter_than_a_probe(steps: int) -> None:
    assert seen(dataclasses.replace(grids.mlp(), steps=steps)).steps == 1


def test_only_steps_with_a_whole_batch_count() -> None:
    """Every third one has half the rows."""
    found = seen(dataclasses.replace(grids.mlp(), steps=9), least_steps=5)
    assert sorted({s.step for s in found.samples[0]}) == [3, 4, 6, 7], "the first two warm up"


class OnDemand(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return grids.ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return grids.numbers(grids.ROWS, 18)[index], grids.LABELS[index]


@pytest.mark.parametrize("loaders", [0, 1])
def test_data_may_come_from_loader_workers(loaders: int) -> None:
    job, others = dataclasses.replace(grids.mlp(), data=OnDemand(), num_loader_workers=loaders), children()
    assert seen(job).steps >= 2
    assert children() == others


@pytest.mark.parametrize(
    "fields",
    [{"sync_batchnorm": True}, {"precision": "bfloat16"}, {"codec": "int8@1"}, {"batch_size": 23, "shards": 3}],
    ids=str,
)
def test_every_kind_of_numbers_can_be_probed(fields: dict[str, object]) -> None:
    found = seen(dataclasses.replace(grids.cnn(), **fields))  # type: ignore[arg-type]
    assert ("Lockstep" in actions(found, 0)) == ("sync_batchnorm" in fields)


def test_there_may_be_more_workers_than_cores_and_stages_too() -> None:
    assert len(seen(grids.mlp(), workers=5).samples) == 5
    stages = (Stage("", (0,), (8,)), Stage("body.5", (1,), (8,)))
    found = seen(grids.mlp(), stages=stages)
    assert {"Send", "ReceiveGradient"} <= actions(found, 0)
    assert {"Receive", "SendGradient"} <= actions(found, 1)


def test_a_loss_that_is_no_number_takes_its_time_too() -> None:
    job = dataclasses.replace(grids.mlp(), data=(grids.numbers(grids.ROWS, 18) * float("nan"), grids.LABELS))
    assert seen(job).steps >= 2


class Fussy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(18, 18)

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


class Fragile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.parts = nn.Linear(18, 18), nn.ModuleList([Fussy()])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](self.first(x))


def test_the_layer_that_raises_is_named() -> None:
    with pytest.raises(TrainingFailed, match=r"^layer parts\.0 failed at step 0: ValueError: not today$"):
        seen(dataclasses.replace(grids.mlp(), model=Fragile))


class Deadly(nn.Linear):
    def __init__(self) -> None:
        super().__init__(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        os._exit(7)


def test_a_worker_that_ends_is_a_failure_and_no_hang() -> None:
    with pytest.raises(TrainingFailed, match="ended while its plan was measured"):
        seen(dataclasses.replace(grids.mlp(), model=Deadly), workers=1)

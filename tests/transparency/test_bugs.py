"""Bugs that parallel training really had elsewhere, each with its story: the loss fell all the same.

Names in brackets are where it happened. Every test fails when samestep has the bug.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import samestep
from jobs import bugs
from plainly import batch_of, copied, distance, furthest, initial_model, moves, parameters_of, train_plainly
from samestep.errors import TrainingFailed
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[1] / "jobs" / "bugs.py"
Train = Callable[..., Report]


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Train:
    def run(function: str, **options: Any) -> Report:
        return samestep.train(f"{JOBS}:{function}", launcher=launcher, **options)

    return run


def classes(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def assert_close(report: Report, model: nn.Module, losses: list[float], tolerance: float = 1e-5) -> None:
    assert report.losses == pytest.approx(losses, rel=tolerance)
    off, worst = furthest(report.state_dict(), copied(model))
    assert off < tolerance, f"{worst} is off by {off:.1e}"


# Scale


def test_gradients_are_averaged_though_forward_goes_around_the_model(train: Train) -> None:
    """Hooks hang on a wrapper's forward, and a loss that calls the layers themselves never passes it: every worker
    trains on its own rows and nobody says so [trl#7245, kohya sd-scripts#989; pytorch#104336]."""
    model, losses = train_plainly(bugs.bypassed(), bugs.around_the_model, steps=4)
    assert_close(train("bypassed", assign=(5, 3)), model, losses)


@pytest.mark.parametrize("assign", [(1, 7), (7, 1), (3, 3, 2), (8,)], ids=str)
def test_the_last_shard_of_a_worker_counts_like_every_other(assign: tuple[int, ...], train: Train) -> None:
    """The last micro-batch's gradient was added after the all-reduce, so the step lacked (W-1)/W of it
    [DeepSpeed#7985]; elsewhere all but the last were dropped [DeepSpeed#7981, torchtitan#3575]."""
    accounts = train("ledger", assign=assign).state_dict()["account"]
    for share in (32, 4):  # the short batch shares its step among four rows
        assert int((accounts + 1 / share).abs().lt(1e-6).sum()) == {32: 96, 4: 4}[share]


@pytest.mark.parametrize(("batch_size", "shards"), [(30, 8), (10, 4), (31, 8), (13, 5), (100, 7)])
def test_rows_of_smaller_shards_do_not_count_more(batch_size: int, shards: int, train: Train) -> None:
    """Means of unequal shards are averaged as if the shards were equal: rows of the smaller ones count more
    (any DDP loop whose last batch does not divide)."""
    settings = {"batch_size": batch_size, "shards": shards}
    accounts = train("ledger", settings=settings, workers=3, steps=100 // batch_size).state_dict()["account"]
    used = accounts[accounts != 0]
    assert len(used) == 100 // batch_size * batch_size
    assert torch.allclose(used, torch.tensor(-1 / batch_size), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shards", [1, 4, 8])
def test_evaluation_loss_is_that_of_all_labels(shards: int, train: Train) -> None:
    """The validation loss was divided by accumulation steps [torchtitan#1758], or is a mean of the workers' means."""
    job = bugs.evaluated()
    with torch.no_grad():
        wanted = float(classes(initial_model(job), job.evaluate))
    for workers in {1, shards, min(shards, 3)}:
        report = train("evaluated", settings={"shards": shards}, workers=workers)
        assert report.metrics["loss"] == pytest.approx(wanted, rel=1e-6)


def test_evaluation_sees_every_row_once_and_in_order(train: Train) -> None:
    """A distributed sampler pads the held-out rows to a multiple of the workers: some count twice."""
    for workers in (1, 3, 8):
        metrics = train("counted", workers=workers, steps=1).metrics
        assert metrics == {"loss": metrics["loss"], "rows": 37.0, "in order": 1.0, "half": 0.5}


# Reduction


def test_the_norm_that_clips_is_that_of_the_whole_gradient(train: Train) -> None:
    """Each stage or shard clipped by the norm of its own part [torchtitan#596, #649; pytorch#72548]."""
    model, losses = train_plainly(bugs.clipped(), classes, steps=4)
    before = copied(initial_model(bugs.clipped()))
    for assign in [(8,), (5, 3), (3, 3, 2)]:
        report = train("clipped", assign=assign)
        assert_close(report, model, losses)
        found, wanted = (moves(state, before) for state in (report.state_dict(), copied(model)))
        assert furthest(found, wanted)[0] < 1e-4


@pytest.mark.parametrize("assign", [(8,), (5, 3), (3, 3, 2)], ids=str)
def test_tied_weights_get_both_gradients_and_stay_tied(assign: tuple[int, ...], train: Train) -> None:
    """The copies of a tied embedding were reduced apart, or one of them twice [Megatron#844, #656, #6164]."""
    job = bugs.tied()
    model, losses = train_plainly(
        job, lambda model, batch: F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()), steps=4
    )
    report = train("tied", assign=assign)
    state = report.state_dict()
    assert torch.equal(state["head.weight"], state["tokens.weight"])
    assert report.losses == pytest.approx(losses, rel=1e-4)
    assert distance(state["tokens.weight"], model.tokens.weight.detach()) < 1e-4


@pytest.mark.parametrize("assign", [(8,), (5, 3), (1,) * 8], ids=str)
def test_same_shaped_gradients_that_arrive_in_other_orders_are_not_swapped(
    assign: tuple[int, ...], train: Train
) -> None:
    """Two workers reduced two tensors of one shape in swapped order; the sums were silently wrong (measured with
    gloo). Here the rows decide in which order layers run, and whether one runs at all."""
    model, losses = train_plainly(bugs.switching(), classes, steps=4)
    report = train("switching", assign=assign)
    assert_close(report, model, losses, tolerance=1e-4)
    assert report.digest == train("switching", assign=(2, 6), transport="threads").digest


@pytest.mark.parametrize("optimizer", bugs.DECAYING)
@pytest.mark.parametrize("assign", [(8,), (5, 3)], ids=str)
def test_a_parameter_without_gradient_is_left_alone(assign: tuple[int, ...], optimizer: str, train: Train) -> None:
    """A reduction makes zeros of gradients that are None; AdamW then decays what the plain loop skips, and momentum
    moves it on (DDP with find_unused_parameters)."""
    job = bugs.seldom(optimizer)
    before = copied(initial_model(job))
    model, losses = train_plainly(job, bugs.numbered, steps=4)
    report = train("seldom", settings={"optimizer": optimizer}, assign=assign)
    after = report.state_dict()
    assert_close(report, model, losses, tolerance=1e-4)
    assert torch.equal(after["never.weight"], before["never.weight"])
    first = train("seldom", settings={"optimizer": optimizer}, assign=assign, steps=1).state_dict()
    second = train("seldom", settings={"optimizer": optimizer}, assign=assign, steps=2).state_dict()
    assert not torch.equal(first["once.weight"], before["once.weight"])
    assert torch.equal(second["once.weight"], first["once.weight"])


# Buffers


@pytest.mark.parametrize("assign", [(8,), (5, 3), (1,) * 8], ids=str)
def test_saved_batchnorm_statistics_are_of_all_workers(assign: tuple[int, ...], train: Train) -> None:
    """Every worker moved its running statistics by its own rows, and those of rank 0 were saved [mmaction2#675,
    mmdetection#4582, detectron2#5398]. And eight shards one after the other would move them eight times."""
    job = bugs.buffers()
    state = train("buffers", assign=assign, steps=1).state_dict()
    rows = batch_of(job.data, 0, 30)[0].flatten(1)
    parts = [rows[s * 30 // 8 : (s + 1) * 30 // 8] for s in range(8)]
    mean = sum(len(part) / 30 * (0.1 * part.mean(0)) for part in parts)
    var = sum(len(part) / 30 * (0.9 + 0.1 * part.var(0)) for part in parts)
    assert distance(state["norm.running_mean"], mean) < 1e-6
    assert distance(state["norm.running_var"], var) < 1e-6
    assert int(state["norm.num_batches_tracked"]) == 1


def test_buffers_that_forward_replaces_are_not_lost(train: Train, tmp_path: Path) -> None:
    """The checkpoint held the tensor that the buffer had been at first: zeros [torchtitan#1222, #1226]. The one that
    is not in the state_dict was not saved at all."""
    undisturbed = train("buffers", workers=2)
    train("buffers", workers=3, steps=4, checkpoint=tmp_path)
    resumed = train("buffers", workers=2, steps=6, checkpoint=tmp_path, resume=True)
    state = resumed.state_dict()
    assert [*undisturbed.losses[4:]] == resumed.losses  # `scale` acts on every loss
    assert resumed.digest == undisturbed.digest
    assert int(state["calls"]) == 6
    batches = [batch_of(bugs.buffers().data, step, 30)[0].flatten(1).mean(0) for step in range(6)]
    average = torch.zeros(64)
    for batch in batches:
        average = 0.9 * average + 0.1 * batch
    assert distance(state["average"], average) < 1e-5


# Data


def rows_of(report: Report, rows: int = 40, batch_size: int = 16, drop_last: bool = False) -> list[set[int]]:
    """Which rows each step of a log book was made of."""
    sizes = [batch_size] * (rows // batch_size) + ([rows % batch_size] if rows % batch_size and not drop_last else [])
    found = []
    for i, loss in enumerate(report.losses):
        bits = round(loss * sizes[(report.steps - len(report.losses) + i) % len(sizes)])
        found.append({row for row in range(rows) if bits >> row & 1})
        assert len(found[-1]) == sizes[(report.steps - len(report.losses) + i) % len(sizes)]
    return found


@pytest.mark.parametrize(("rows", "batch_size", "workers"), [(40, 16, 3), (12, 12, 4), (13, 4, 2), (17, 5, 1)])
def test_every_epoch_uses_every_row_once(rows: int, batch_size: int, workers: int, train: Train) -> None:
    """Twelve images on four ranks: two were used twice, two never [SimpleTuner#2986]."""
    settings = {"rows": rows, "batch_size": batch_size}
    shards = min(4, batch_size)
    steps = rows_of(train("log_book", settings=settings, workers=min(workers, shards)), rows, batch_size)
    per_epoch = -(-rows // batch_size)
    assert len(steps) == 4 * per_epoch
    for epoch in range(4):
        seen = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert set().union(*seen) == set(range(rows))
        assert sum(map(len, seen)) == rows


@pytest.mark.parametrize("loaders", [0, 2])
def test_every_epoch_has_an_order_of_its_own(loaders: int, train: Train) -> None:
    """Without set_epoch a distributed sampler shuffles every epoch alike [pytorch#31771, transformers#4398]."""
    steps = rows_of(train("log_book", settings={"loaders": loaders}, workers=2))
    epochs = [steps[at : at + 3] for at in range(0, 12, 3)]
    assert all(a != b for i, a in enumerate(epochs) for b in epochs[:i])
    assert epochs[0] != [set(range(0, 16)), set(range(16, 32)), set(range(32, 40))]


def test_rows_left_out_are_others_every_epoch(train: Train) -> None:
    """The short batch that is dropped must not hold the same rows for ever."""
    report = train("log_book", settings={"drop_last": True}, workers=2)
    steps = rows_of(report, drop_last=True)
    left_out = [set(range(40)) - steps[at] - steps[at + 1] for at in range(0, 8, 2)]
    assert all(len(rows) == 8 for rows in left_out)
    assert len({frozenset(rows) for rows in left_out}) == 4


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5, 8, 11])
def test_resuming_neither_repeats_nor_skips_rows(stop: int, loaders: int, train: Train, tmp_path: Path) -> None:
    """A resumed run began its epoch again [torchtitan#3008, #3907], shuffled as epoch 0 [accelerate#2016, #4071], or
    skipped an epoch and ended well [verl#7401]; loaders that read ahead lose what they had read."""
    undisturbed = rows_of(train("log_book", workers=1))
    settings = {"loaders": loaders}
    first = train("log_book", settings=settings, workers=2, steps=stop, checkpoint=tmp_path)
    rest = train("log_book", settings=settings, workers=3, epochs=4, checkpoint=tmp_path, resume=True)
    assert rows_of(first) + rows_of(rest) == undisturbed


@pytest.mark.parametrize("source", ["torch", "random", "numpy"])
def test_loader_workers_do_not_draw_the_same_numbers(source: str, train: Train) -> None:
    """Forked loader workers share NumPy's state, so rows get the same augmentation, in every epoch anew
    (pytorch#5059 and thousands of repositories)."""
    reference = train("draws", settings={"source": source}, workers=1)
    assert len(set(reference.losses)) == 36
    assert train("draws", settings={"source": source, "loaders": 2}, workers=1).losses == reference.losses


def test_dropout_masks_differ_between_rows_and_steps(train: Train) -> None:
    """The same seed on every rank drops the same units of every shard; a seed per step left out, in every step."""
    masks = train("dropout_ledger", assign=(5, 3)).state_dict()["account"] != 0
    assert 0.45 < masks.double().mean() < 0.55
    assert len({tuple(mask.tolist()) for mask in masks}) == 32
    step_by_step = train("dropout_ledger", settings={"batch_size": 8}, workers=2, steps=4).state_dict()["account"] != 0
    assert len({tuple(mask.tolist()) for mask in step_by_step}) == 32


# State


def test_momentum_survives_a_change_of_workers(train: Train, tmp_path: Path) -> None:
    """Optimizer state of another world size was dropped in silence [Megatron-Bridge#5637, bionemo#1250]."""
    model, losses = train_plainly(bugs.momentum(), classes, steps=6)
    train("momentum", workers=3, steps=3, checkpoint=tmp_path)
    resumed = train("momentum", workers=2, steps=6, checkpoint=tmp_path, resume=True)
    assert resumed.losses == pytest.approx(losses[3:], rel=1e-5)
    assert furthest(resumed.state_dict(), copied(model))[0] < 1e-5


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_the_schedule_goes_on_where_it_was(stop: int, train: Train, tmp_path: Path) -> None:
    """The schedule was not in the checkpoint and began again [torchtitan#275]; or it stepped once per micro-batch, or
    gradients of the last step were still there. Batch t of the ledger takes 1/2^t off each of its rows' accounts."""
    settings = {"decay": 0.5, "rows": 128}
    if stop:
        train("ledger", settings=settings, workers=3, steps=stop, checkpoint=tmp_path)
    accounts = train("ledger", settings=settings, workers=2, checkpoint=tmp_path, resume=True).state_dict()["account"]
    for step in range(4):
        assert int((accounts == -(0.5**step) / 32).sum()) == 32


@pytest.mark.parametrize("assign", [(8,), (5, 3), (3, 3, 2)], ids=str)
def test_the_optimizer_holds_the_parameters_that_forward_reads(assign: tuple[int, ...], train: Train) -> None:
    """After the model was wrapped or moved the optimizer updated tensors that nobody read [accelerate#2665]; or a
    worker's forward still read the weights of the step before."""
    job = bugs.clipped()
    job.clip_grad_norm = None
    model, losses = train_plainly(job, classes, steps=8)
    report = train("clipped", settings={"max_norm": 1e9}, assign=assign, steps=8)
    assert len(set(losses)) == 8
    assert_close(report, model, losses, tolerance=1e-4)


def test_a_model_that_the_job_brings_along_is_trained_like_one_from_a_factory(train: Train) -> None:
    digests = {
        train("whole_model", workers=workers, transport=transport).digest
        for workers in (1, 3)
        for transport in ("processes", "threads")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("transport", ["processes", "threads"])
def test_initial_weights_that_no_seed_decides_are_the_same_on_all_workers(transport: str, train: Train) -> None:
    """Every rank built its own model and nobody broadcast it. The digest fails when two workers differ."""
    report = train("unseeded", workers=3, transport=transport)
    assert len(report.losses) == 4


# NaN


@pytest.mark.parametrize(("assign", "holder"), [((8,), 0), ((1, 7), 1), ((2, 1, 5), 1)], ids=str)
def test_a_nan_is_named_before_it_spreads(assign: tuple[int, ...], holder: int, train: Train, tmp_path: Path) -> None:
    """The check for NaN came after the all-reduce: everybody had it, nobody knew from whom [Megatron d668077]."""
    with pytest.raises(TrainingFailed) as failure:
        train("poisoned", assign=assign, checkpoint=tmp_path, every=1)
    assert f"worker {holder} failed at step 2" in str(failure.value)
    assert "shard 2" in str(failure.value)
    last = sorted(tmp_path.iterdir())[-1]
    assert last.name == "step-00000002"
    for file in last.glob("*.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(file).values())


def test_weights_of_the_plain_loop_are_compared_tensor_by_tensor() -> None:
    """Guards `furthest`: an error in one small tensor is not hidden by the others."""
    model = initial_model(bugs.clipped())
    state = copied(model)
    spoiled = {**state, "3.bias": state["3.bias"] * 1.001}
    assert furthest(spoiled, state) == (pytest.approx(1e-3, rel=1e-2), "3.bias")
    assert set(parameters_of(state, model)) == set(state)

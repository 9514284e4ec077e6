"""Against a plain PyTorch step on the whole batch: equal up to rounding, for any assignment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import samestep
from jobs import plain_steps
from jobs.transparent import penalised
from pairwise import in_turn
from plainly import copied, furthest, initial_model, moves, parameters_of, train_plainly
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[1] / "jobs" / "plain_steps.py"
WEIGHTS = plain_steps.class_weights()


def classes(**options: Any) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], **options)


# What a user would write in a training loop of their own, by the name of the job.
PLAIN: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "mlp": classes(),
    "cnn_sync": classes(),
    "gpt": lambda model, batch: F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()),
    "lstm": classes(),
    "embedding_bag": classes(),
    "regression": lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
    "summed": classes(reduction="sum"),
    "gradient_penalty": penalised,
    "ignored_labels": classes(),
    "ignored_class": classes(ignore_index=3, label_smoothing=0.1),
    "weighted_classes": classes(weight=WEIGHTS),
    "weighted_and_ignored": classes(weight=WEIGHTS, label_smoothing=0.2),
    "log_probabilities": lambda model, batch: F.nll_loss(model(batch[0]), batch[1], weight=WEIGHTS),
    "sum_and_weight": lambda model, batch: F.cross_entropy(model(batch["ids"]), batch["labels"]),
    "weighted_rows": lambda model, batch: (
        (F.cross_entropy(model(batch[0]), batch[1], reduction="none") * batch[2]).sum() / batch[2].sum()
    ),
}


WORKERS = [((8,), "processes"), ((5, 3), "processes"), ((6, 1, 1), "threads")]


@pytest.mark.parametrize(("name", "workers"), in_turn(PLAIN, WORKERS, whole="mlp"), ids=str)
def test_the_first_step_is_that_of_a_plain_loop(
    name: str, workers: tuple[tuple[int, ...], str], launcher: Launcher
) -> None:
    assign, transport = workers
    job = getattr(plain_steps, name)()
    before = copied(initial_model(job))
    model, losses = train_plainly(job, PLAIN[name], steps=1)
    report = samestep.train(f"{JOBS}:{name}", assign=assign, transport=transport, launcher=launcher)
    found, wanted = report.state_dict(), copied(model)
    assert report.losses == pytest.approx(losses, rel=1e-6)
    off, worst = furthest(found, wanted)
    assert off < 1e-6, f"{worst} is off by {off:.1e}"
    off, worst = furthest(*(parameters_of(moves(state, before), model) for state in (found, wanted)))
    assert off < 1e-4, f"the change of {worst} is off by {off:.1e}"


@pytest.mark.parametrize(("name", "shards"), in_turn(["cnn_sync", "ignored_labels", "mlp"], [1, 2, 3, 15], whole="mlp"))
def test_so_it_is_for_any_number_of_shards(name: str, shards: int, launcher: Launcher) -> None:
    model, losses = train_plainly(getattr(plain_steps, name)(), PLAIN[name], steps=1)
    report = samestep.train(f"{JOBS}:{name}", shards=shards, workers=min(shards, 2), launcher=launcher)
    off, worst = furthest(report.state_dict(), copied(model))
    assert report.losses == pytest.approx(losses, rel=1e-6)
    assert off < 1e-6, f"{worst} is off by {off:.1e}"


@pytest.mark.parametrize("name", ["ignored_labels", "weighted_classes", "weighted_rows"])
def test_the_uneven_jobs_would_show_a_mean_of_means(name: str) -> None:
    """Guards the tests above: weighting shards by rows gives another step, by more than a tenth."""
    job = getattr(plain_steps, name)()

    def mean_of_means(model: nn.Module, batch: Any) -> Tensor:
        shards = [tuple(column[at : at + 4] for column in batch) for at in range(8, plain_steps.BATCH, 4)]
        return sum(PLAIN[name](model, shard) * len(shard[0]) for shard in shards) / (plain_steps.BATCH - 8)

    before = copied(initial_model(job))
    right, _ = train_plainly(job, lambda model, batch: PLAIN[name](model, [c[8:] for c in batch]), steps=1)
    wrong, _ = train_plainly(job, mean_of_means, steps=1)
    off, _ = furthest(moves(copied(wrong), before), moves(copied(right), before))
    assert off > 0.1


def test_batchnorm_per_shard_is_another_step_and_sync_batchnorm_takes_it_back(launcher: Launcher) -> None:
    model, _ = train_plainly(plain_steps.cnn_sync(), PLAIN["cnn_sync"], steps=1)
    report = samestep.train(f"{JOBS}:cnn_without_sync", workers=2, launcher=launcher)
    assert furthest(report.state_dict(), copied(model))[0] > 1e-2


def test_losses_stay_those_of_a_plain_loop_over_an_epoch(launcher: Launcher) -> None:
    """Four steps, the last one short: every forward sees the update before it."""
    for name in ("mlp", "cnn_sync", "ignored_labels"):
        _, losses = train_plainly(getattr(plain_steps, name)(), PLAIN[name], steps=4)
        report = samestep.train(f"{JOBS}:{name}", assign=(5, 3), steps=4, launcher=launcher)
        assert report.losses == pytest.approx(losses, rel=1e-4)
        assert len(set(losses)) == 4

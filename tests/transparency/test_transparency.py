"""The promise: the same digest whoever does the work."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import samestep
from jobs import transparent
from pairwise import crossed, only
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[1] / "jobs" / "transparent.py"
STEPS = transparent.STEPS
TRANSPORTS = ["processes", "threads"]
ASSIGNMENTS = [(8,), (4, 4), (3, 3, 2), (2, 2, 2, 2), (1,) * 8, (5, 3), (6, 1, 1)]
FAMILIES = [
    "mlp",
    "cnn",
    "cnn_sync",
    "gpt",
    "lstm",
    "embedding_bag",
    "dict_batches",
    "augmentation",
    "augmentation_2_loaders",
]
SAME_AS = {"augmentation_2_loaders": "augmentation"}  # loader workers are not part of the numbers

Train = Callable[..., Report]


def by_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(" ", "_")


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Train:
    """`train("mlp", assign=(5, 3))`"""

    def run(function: str, **options: Any) -> Report:
        return samestep.train(f"{JOBS}:{function}", launcher=launcher, **options)

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> Train:
    """The same job on one worker, trained once however many tests ask for it."""
    known: dict[str, Report] = {}

    def run(function: str, **options: Any) -> Report:
        name = f"{function} {sorted(options.items())}"
        if name not in known:
            known[name] = train(function, assign=(options.get("shards") or transparent.SHARDS,), **options)
        return known[name]

    return run


def assert_same(report: Report, reference: Report) -> None:
    assert report.losses == reference.losses
    assert report.digest == reference.digest


def by_workers(family: str, transport: str, assign: tuple[int, ...]) -> tuple[object, ...]:
    """One worker, even or uneven ones, more than cores."""
    return family, transport, len(assign) == 1, len(set(assign)) == 1, len(assign) > 3


@pytest.mark.parametrize(
    ("family", "transport", "assign"),
    crossed(FAMILIES, TRANSPORTS, ASSIGNMENTS, whole=lambda family, *_: family == "mlp", traits=by_workers),
    ids=by_text,
)
def test_digest_is_the_same_for_any_assignment(
    family: str, transport: str, assign: tuple[int, ...], train: Train, alone: Train
) -> None:
    report = train(family, transport=transport, assign=assign)
    assert report.assign == assign
    assert len(report.losses) == STEPS
    assert_same(report, alone(SAME_AS.get(family, family)))


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_a_number_of_workers_is_an_assignment_too(workers: int, train: Train, alone: Train) -> None:
    report = train("mlp", workers=workers)
    assert (report.workers, sum(report.assign)) == (workers, transparent.SHARDS)
    assert_same(report, alone("mlp"))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_every_parameter_and_the_weights_are_the_same(family: str, train: Train, alone: Train) -> None:
    """Equal digests would be worth little if nothing moved."""
    first, last = train(family, workers=2, steps=1).state_dict(), train(family, assign=(5, 3)).state_dict()
    reference = alone(SAME_AS.get(family, family)).state_dict()
    assert all(torch.equal(last[name], reference[name]) for name in reference)
    assert not any(torch.equal(first[name], reference[name]) for name in reference)


UPDATED = {"sgd fused", "adamw", "muon"}  # the others are resumed below, which updates pieces as well


@pytest.mark.parametrize("optimizer", only(UPDATED, transparent.OPTIMIZERS), ids=by_text)
def test_every_optimizer_updates_pieces_as_it_updates_the_whole(optimizer: str, train: Train, alone: Train) -> None:
    settings = {"name": optimizer}
    report = train("with_optimizer", settings=settings, assign=(5, 2, 1), transport="threads")
    assert_same(report, alone("with_optimizer", settings=settings))


VARIANTS: dict[str, Callable[[Train], Report]] = {
    "scalars, doubles, frozen and strided parameters": lambda run: run("mixed"),
    "two threads per shard": lambda run: run("odd_sizes", threads=2, steps=4),
    "changes in place": lambda run: run("in_place"),
    "sizes that no vector divides": lambda run: run("odd_sizes"),
    "bfloat16": lambda run: run("gpt", settings={"precision": "bfloat16"}, steps=6),
    "recomputation": lambda run: run("recomputation", settings={"reentrant": False}),
    "reentrant recomputation": lambda run: run("recomputation", settings={"reentrant": True}),
    "parametrised weights": lambda run: run("spectral"),
    "adversarial training": lambda run: run("adversarial"),
    "gradient penalty": lambda run: run("gradient_penalty"),
    "a layer used three times": lambda run: run("repeated_layer"),
    "batches too small for most workers": lambda run: run("few_rows"),
    "the same with loader workers": lambda run: run("few_rows", settings={"loaders": 1}),
    "evaluation": lambda run: run("evaluated", settings={"held_out": True}),
    "no shuffle": lambda run: run("by_epochs", settings={"shuffle": False}),
    "no short batch": lambda run: run("by_epochs", settings={"drop_last": True}),
    "seven shards": lambda run: run("mlp", shards=7),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=by_text)
def test_digest_is_the_same_whatever_a_step_contains(variant: str, train: Train, alone: Train) -> None:
    run = VARIANTS[variant]
    assign = (1, 4, 2) if variant == "seven shards" else (5, 1, 2)
    assert_same(run(partial(train, assign=assign)), run(alone))


def test_workers_without_any_shard_change_nothing(train: Train, alone: Train) -> None:
    assert_same(train("gpt", assign=(0, 8, 0)), alone("gpt"))


# Length, evaluation, repetition


def test_a_length_in_epochs_is_the_same_as_its_steps(train: Train, alone: Train) -> None:
    assert len(alone("by_epochs").losses) == 3 * 4
    assert_same(train("by_epochs", workers=3), alone("by_epochs"))
    assert_same(train("by_epochs", workers=2, steps=12), alone("by_epochs"))
    assert len(train("by_epochs", workers=2, settings={"drop_last": True}).losses) == 3 * 3


def test_evaluation_leaves_the_training_alone(train: Train) -> None:
    with_it = train("evaluated", workers=2, settings={"held_out": True})
    without = train("evaluated", workers=3, settings={"held_out": False})
    assert set(with_it.metrics) == {"loss", "accuracy"}
    assert_same(with_it, without)


@pytest.mark.parametrize("assign", only({(5, 3), (1,) * 8}, ASSIGNMENTS), ids=by_text)
def test_metrics_are_the_same_for_any_assignment(assign: tuple[int, ...], train: Train, alone: Train) -> None:
    settings = {"held_out": True}
    reference = alone("evaluated", settings=settings)
    assert train("evaluated", assign=assign, settings=settings).metrics == reference.metrics


def test_the_numerics_line_and_the_plan_reproduce_a_run(train: Train, tmp_path: Path) -> None:
    report = train("mlp", assign=(5, 3), shards=8, seed=7)
    assert_same(train("mlp", workers=2, numerics=report.numerics), report)
    plan = tmp_path / "plan.toml"
    plan.write_text(report.plan)
    again = train("mlp", plan=str(plan))
    assert again.assign == (5, 3)
    assert_same(again, report)


# Stop and resume

JOURNEYS = [((8,), (5, 3), 6), ((5, 3), (8,), 8), ((6, 1, 1), (1,) * 8, 10), ((1,) * 8, (3, 3, 2), 15)]


@pytest.mark.parametrize(
    ("family", "before", "after", "stop"),  # 8 lies between two epochs
    [
        pytest.param(family, *journey, marks=[pytest.mark.slow] if number % 2 == skipped else [])
        for skipped, family in enumerate(["cnn", "gpt"])
        for number, journey in enumerate(JOURNEYS)
    ],
    ids=by_text,
)
def test_resumed_on_other_workers_the_end_is_the_same(
    family: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    stop: int,
    train: Train,
    alone: Train,
    tmp_path: Path,
) -> None:
    first = train(family, assign=before, steps=stop, checkpoint=tmp_path)
    rest = train(family, assign=after, steps=STEPS, checkpoint=tmp_path, resume=True, transport="threads")
    assert [*first.losses, *rest.losses] == alone(family).losses
    assert rest.digest == alone(family).digest


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_job_is_resumed_in_mid_epoch(family: str, train: Train, alone: Train, tmp_path: Path) -> None:
    train(family, assign=(5, 3), steps=7, checkpoint=tmp_path)
    rest = train(family, workers=3, steps=STEPS, checkpoint=tmp_path, resume=True)
    assert len(rest.losses) == STEPS - 7
    assert rest.digest == alone(SAME_AS.get(family, family)).digest


RESUMED = {  # each kind of state; the others differ from one of these in the implementation that torch takes
    *("sgd fused", "adam", "adamw", "adamax", "nadam", "adagrad", "rmsprop centered", "rprop", "asgd", "adafactor"),
    *("muon", "lars"),
}


@pytest.mark.parametrize("optimizer", only(RESUMED, transparent.OPTIMIZERS), ids=by_text)
def test_every_optimizer_is_resumed(optimizer: str, train: Train, alone: Train, tmp_path: Path) -> None:
    settings = {"name": optimizer}
    train("with_optimizer", settings=settings, assign=(3, 5), steps=3, checkpoint=tmp_path)
    rest = train("with_optimizer", settings=settings, workers=3, steps=6, checkpoint=tmp_path, resume=True)
    assert rest.digest == alone("with_optimizer", settings=settings).digest


RESUMED_SCHEDULERS = {"step", "lambda", "cosine", "one cycle", "sequence", "chain"}


@pytest.mark.parametrize("scheduler", only(RESUMED_SCHEDULERS, transparent.SCHEDULERS), ids=by_text)
def test_every_scheduler_is_resumed(scheduler: str, train: Train, alone: Train, tmp_path: Path) -> None:
    settings = {"name": scheduler}
    train("with_scheduler", settings=settings, workers=2, steps=7, checkpoint=tmp_path, transport="threads")
    rest = train("with_scheduler", settings=settings, workers=3, steps=STEPS, checkpoint=tmp_path, resume=True)
    assert rest.digest == alone("with_scheduler", settings=settings).digest


def test_a_schedule_of_betas_is_resumed(train: Train, alone: Train, tmp_path: Path) -> None:
    train("adamw_cycle", workers=2, steps=7, checkpoint=tmp_path)
    rest = train("adamw_cycle", workers=3, steps=STEPS, checkpoint=tmp_path, resume=True)
    assert rest.digest == alone("adamw_cycle").digest


def test_checkpoints_on_the_way_leave_the_training_alone(train: Train, alone: Train, tmp_path: Path) -> None:
    assert_same(train("gpt", workers=2, checkpoint=tmp_path, every=3), alone("gpt"))


# What must make a difference


@pytest.mark.parametrize("family", ["mlp", "augmentation"])
def test_another_seed_is_another_training(family: str, train: Train, alone: Train) -> None:
    other = train(family, workers=2, seed=1)
    assert other.digest != alone(family).digest
    assert not set(other.losses) & set(alone(family).losses)


def test_another_number_of_shards_gives_another_digest(train: Train, alone: Train) -> None:
    digests = {train("mlp", workers=2, shards=shards).digest for shards in (2, 4, 7)} | {alone("mlp").digest}
    assert len(digests) == 4


def test_another_learning_rate_gives_another_digest(train: Train, alone: Train) -> None:
    other = train("mlp", workers=2, settings={"lr": 0.0501})
    assert other.digest != alone("mlp").digest
    assert other.losses[0] == alone("mlp").losses[0]
    assert other.losses[-1] != alone("mlp").losses[-1]

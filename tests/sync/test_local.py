"""local(H): logical workers take steps of their own and meet. Which workers they are does not change a bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import samestep
from hosts import HostsUnavailable, report_of
from jobs import local as jobs
from pairwise import crossed
from plainly import batch_of, distance, initial_model
from samestep.errors import Disagreement, PlanRefused, Refused
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher
from samestep.numerics.numerics import Numerics
from samestep.numerics.policy import Local, Nesterov
from samestep.parallel.execution.local_executor import LocalExecutor
from samestep.plan.plan import Plan, Stage
from samestep.schedule import actions
from samestep.schedule.local_steps import check_local_step, local_step_schedule
from samestep.sync.averaging import ObservedBound, Outer, distance_from_mean
from samestep.sync.logical_workers import Logical, at_meetings, check_local, logical_of
from samestep.trace.chrome import name_of
from samestep.training.checkpoints import weights
from thread_hosts import on

JOBS = Path(jobs.__file__)
Train = Callable[..., Report]


@pytest.fixture(scope="module")
def small(launcher: Launcher) -> Train:
    def run(function: str = "job", settings: dict[str, Any] | None = None, **options: Any) -> Report:
        return samestep.train(f"{JOBS}:{function}", launcher=launcher, settings=settings or {}, **options)

    return run


# Whoever does the work


LAYOUTS = [{"workers": 2}, {"workers": 3}, {"workers": 4}, {"assign": (5, 3)}, on(1, 1), on(1, 2, 1)]


@pytest.mark.parametrize(
    ("family", "sync", "layout"),
    crossed(
        ["mlp", "cnn", "gpt"],
        ["local(2)", "local(3,outer=nesterov)"],
        LAYOUTS,
        whole=lambda family, *_: family == "mlp",
    ),
    ids=str,
)
def test_one_digest_whoever_the_logical_workers_are(
    family: str, sync: str, layout: dict[str, Any], train: Train, alone: Train
) -> None:
    """Five steps: the third batch is short, so that two of eight logical workers have no rows in it, and the run ends
    between two meetings. The MLP is evaluated, the CNN has BatchNorm and clipping, the GPT a tied head and AdamW."""
    expected = alone(family, sync=sync)
    assert expected.digest != alone(family).digest
    found = train(family, sync=sync, **layout)
    assert found.digest == expected.digest
    assert found.losses == expected.losses
    assert found.metrics == expected.metrics
    assert found.sync == expected.sync
    state, wanted = found.state_dict(), expected.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_fewer_logical_workers_have_several_shards_each(train: Train, alone: Train) -> None:
    expected = alone("cnn", sync="local(2,workers=2)")
    assert expected.digest != alone("cnn", sync="local(2)").digest
    for layout in ({"workers": 2}, on(1, 1)):
        assert train("cnn", sync="local(2,workers=2)", **layout).digest == expected.digest


@pytest.mark.parametrize(
    ("sync", "first", "then"),
    [
        ("local(2)", {"workers": 1}, {"workers": 3}),
        ("local(3)", {"workers": 2}, on(1, 2, 1)),
        ("local(3,outer=nesterov)", on(1, 1), {"workers": 1}),
        ("local(5)", {"workers": 2}, {"workers": 1}),
        ("local(4,outer=nesterov)", on(1, 2, 1), on(2, 2)),
    ],
)
def test_a_run_goes_on_with_other_workers(
    sync: str, first: dict[str, Any], then: dict[str, Any], train: Train, alone: Train, tmp_path: Path
) -> None:
    """From between two meetings, or from one. In a window of five steps, two logical workers have missed a batch."""
    train("cnn", sync=sync, steps=4, checkpoint=tmp_path, **first)
    found = train("cnn", sync=sync, steps=7, checkpoint=tmp_path, resume=True, **then)
    assert found.digest == alone("cnn", sync=sync, steps=7).digest
    assert found.losses == alone("cnn", sync=sync, steps=7).losses[4:]


def test_a_restored_state_is_the_saved_one(train: Train, alone: Train, tmp_path: Path) -> None:
    for steps, sync in ((4, "local(2)"), (4, "local(3,outer=nesterov)")):
        folder = tmp_path / sync
        expected = train("gpt", sync=sync, steps=steps, checkpoint=folder, workers=2)
        again = train("gpt", sync=sync, steps=steps, checkpoint=folder, resume=True, **on(1, 2, 1))
        assert again.digest == expected.digest
        state, wanted = again.state_dict(), expected.state_dict()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted), "and so is its mean"


@pytest.mark.hosts
def test_real_hosts_give_the_same_digest(train: Train, alone: Train) -> None:
    job = Path(__file__).parents[1] / "jobs" / "grids.py"
    try:
        found = report_of([1, 2], f"{job}:cnn", "--sync", "local:2", "--plan", "data")
    except HostsUnavailable as reason:
        pytest.skip(str(reason))
    expected = alone("cnn", sync="local(2)")
    assert (found["digest"], found["losses"]) == (expected.digest, list(expected.losses))


# The same by hand


def by_hand(settings: dict[str, Any], steps: int, every: int, workers: int, outer: Nesterov | None = None) -> nn.Module:
    """Local SGD and DiLoCo as one would write them for one process."""
    job = jobs.job(**settings)
    common = initial_model(job)
    models = [copy.deepcopy(common) for _ in range(workers)]
    optimizers = [job.optimizer(list(model.parameters())) for model in models]
    schedulers = [job.scheduler(optimizer) if job.scheduler else None for optimizer in optimizers]
    step_out = None
    if outer is not None:
        step_out = optim.SGD(common.parameters(), outer.lr, momentum=outer.momentum, nesterov=outer.momentum > 0)
    for step in range(steps):
        x, y = batch_of(job.data, step, job.batch_size)
        for model, optimizer, scheduler, rows, labels in zip(
            models, optimizers, schedulers, x.chunk(workers), y.chunk(workers), strict=True
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows), labels).backward()
            if job.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), job.clip_grad_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            states = [model.state_dict() for model in models]
            mean = {
                name: torch.stack([state[name] for state in states]).double().mean(0).to(value.dtype)
                for name, value in states[0].items()
            }
            if step_out is None or (step + 1) % every:
                common.load_state_dict(mean)
                if (step + 1) % every:
                    break
            else:
                for name, param in common.named_parameters():
                    param.grad = param.detach() - mean[name]
                step_out.step()
                common.load_state_dict({**mean, **dict(common.named_parameters())})
            for model in models:
                model.load_state_dict(common.state_dict())
    return common


PLAIN = [
    ({"clip": 0.0}, "local(3)", None, 4),
    ({"clip": 0.3}, "local(2)", None, 4),
    ({"norm": False}, "local(5,workers=2)", None, 2),
    ({"clip": 0.3}, "local(5,outer=nesterov:0.7:0.9)", Nesterov(0.7, 0.9), 4),
    ({"norm": False}, "local(2,workers=2,outer=nesterov:0.4:0.5)", Nesterov(0.4, 0.5), 2),
]


@pytest.mark.parametrize(("settings", "sync", "outer", "workers"), PLAIN, ids=lambda value: str(value))
def test_it_is_local_sgd_as_everybody_writes_it(
    settings: dict[str, Any], sync: str, outer: Nesterov | None, workers: int, small: Train
) -> None:
    """Ten steps; of local(3) the end lies between two meetings, and the weights are the mean."""
    found = small(settings=settings, sync=sync, workers=2).state_dict()
    every = int(sync[6])
    wanted = by_hand(settings, jobs.STEPS, every, workers, outer).state_dict()
    start = initial_model(jobs.job(**settings)).state_dict()
    for name, value in wanted.items():
        if value.is_floating_point():
            assert distance(found[name] - start[name], value - start[name]) < 1e-4, name
        else:
            assert torch.equal(found[name], value), name


def test_meeting_at_every_step_without_momentum_is_the_exact_step_but_for_rounding(small: Train) -> None:
    settings = {"momentum": 0.0, "norm": False}
    found = small(settings=settings, sync="local(1)", workers=2).state_dict()
    wanted = small(settings=settings, workers=1).state_dict()
    assert max(distance(found[name], wanted[name]) for name in wanted) < 1e-6
    steep = small(settings=settings, sync="local(5)", workers=2).state_dict()
    assert min(distance(steep[name], wanted[name]) for name in wanted) > 1e-4, "rounding does not explain five steps"


def test_an_outer_step_of_one_without_momentum_is_the_mean() -> None:
    before, mean = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    wanted = mean.clone()
    Outer(Nesterov(1.0, 0.0), before, torch.zeros_like(before)).step(mean)
    assert torch.allclose(mean, wanted, rtol=1e-14, atol=1e-14)
    assert torch.equal(before, mean), "the next one starts from there"


# Between meetings


@pytest.fixture
def trainer() -> Any:
    with samestep.Trainer(lambda: jobs.job(), sync="local(3)") as found:
        yield found


def thetas(executor: LocalExecutor) -> list[Tensor]:
    return [replica.memory.view(torch.float32).clone() for replica in executor.replicas]


def test_logical_workers_differ_between_meetings_and_not_after(trainer: samestep.Trainer) -> None:
    executor = trainer._training.executor
    assert isinstance(executor, LocalExecutor)
    for step in range(1, 8):
        trainer.step()
        own = thetas(executor)
        differ = [not torch.equal(theta, own[0]) for theta in own[1:]]
        assert all(differ) if step % 3 else not any(differ), step
    report = executor.report()
    assert report["staleness"] == 2
    assert report["meetings"] == 2
    assert 1e-4 < report["divergence"] < 1


def test_looking_at_the_mean_moves_nobody(trainer: samestep.Trainer) -> None:
    executor = trainer._training.executor
    assert isinstance(executor, LocalExecutor)
    for _ in range(4):
        trainer.step()
    before, digest = thetas(executor), trainer.digest()
    found = trainer.evaluate()
    assert found["loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(thetas(executor), before, strict=True))
    assert trainer.digest() == digest
    state = weights(trainer._training)
    mean = torch.stack(before).double().mean(0)
    at = 0
    for entry in executor.layout.entries:
        at = entry.start // 4
        flat = mean[at : at + entry.param.numel()]
        assert distance(state[entry.name].flatten(), flat) < 1e-6, entry.name


def test_losses_are_told_when_workers_meet(trainer: samestep.Trainer) -> None:
    found = [trainer.step() for _ in range(7)]
    known = [[number for number, _ in result.known] for result in found]
    assert known == [[], [], [0, 1, 2], [], [], [3, 4, 5], []]
    assert found[0].loss != found[0].loss, "not known yet"
    assert found[2].loss == found[2].known[-1][1]
    assert [number for number, _ in trainer._training.settle()] == [6]


def test_the_first_loss_is_that_of_exact_steps(small: Train) -> None:
    exact, local = small(workers=1), small(sync="local(4)", workers=2)
    assert local.losses[0] == exact.losses[0]
    assert local.losses[1] != exact.losses[1]
    assert len(local.losses) == len(exact.losses) == jobs.STEPS


def test_a_step_of_stale_parameters_is_an_error(trainer: samestep.Trainer) -> None:
    trainer.step()
    executor = trainer._training.executor
    assert isinstance(executor, LocalExecutor)
    executor.replicas[2].taken += 1
    with pytest.raises(samestep.TrainingFailed, match="logical worker 2 reads parameters 2 steps after"):
        trainer.step()


def test_a_bound_is_one() -> None:
    seen = ObservedBound(4)
    seen.read(0, 3, 3)
    assert seen.staleness == 3
    with pytest.raises(Disagreement, match="of at most 3"):
        seen.read(1, 4, 4)
    seen.agreed([8, 8, 8])
    with pytest.raises(Disagreement, match="worker 1 comes to a meeting after 9 steps, and logical worker 0 after 8"):
        seen.agreed([8, 9, 8])


def test_distance_is_relative() -> None:
    ones = torch.ones(4)
    assert distance_from_mean([(2 * ones, ones), (ones, ones)]) == pytest.approx(0.5**0.5)
    assert distance_from_mean([(ones, ones)]) == 0.0


def test_only_meetings_send_parameters(small: Train) -> None:
    def wired(sync: str, **options: Any) -> int:
        return sum(times.wired for times in small("wide", sync=sync, **options).times)

    assert wired("exact", **on(1, 1)) > 3.7 * wired("local(4)", **on(1, 1))
    assert wired("exact", **on(1, 2, 1)) > 3.5 * wired("local(4)", **on(1, 2, 1))


# Schedules


def test_schedules_are_checked_values() -> None:
    logical = Logical(Local(2, 4), 8, (3, 1))
    plan = Plan(Numerics(shards=8, sync="local(2,workers=4)"), (6, 2))
    shards, workers = logical.all_shards(7), [logical.of(0), logical.of(1)]
    grid = plan.grid(7, [(False,)])
    for meets in (False, True):
        lists = [local_step_schedule(own, shards, meets=meets) for own in workers]
        check_local_step(grid, lists, workers, shards, meets=meets)
        for wrong, words in (
            ((lists[0][:-1], lists[1]), "ends with|takes the steps"),
            ((lists[0], (*lists[1], actions.LocalStep(3))), "steps once|ends with"),
            ((swapped(lists[0], actions.LocalStep(0), actions.Backward(1)), lists[1]), "logical worker 0's"),
            ((tuple(a for a in lists[0] if a != actions.Backward(5)), lists[1]), r"never does Backward\(shard=5"),
        ):
            with pytest.raises(PlanRefused, match=words):
                check_local_step(grid, wrong, workers, shards, meets=meets)


def swapped(schedule: actions.Schedule, one: actions.Action, other: actions.Action) -> actions.Schedule:
    exchange = {one: other, other: one}
    return tuple(exchange.get(action, action) for action in schedule)


def test_a_trace_names_the_steps(small: Train) -> None:
    traces = small(sync="local(2)", workers=2, trace_steps=4).traces
    names = {name_of(event.action) for event in traces[0].events}
    assert {"StepApart", "Average", "Agree"} <= names


# What cannot be served


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sync": "local(0)"}, "never take a step"),
        ({"sync": "local(2,workers=3)"}, "cannot share the 8 shards"),
        ({"sync": "local(2,workers=2)", "workers": 4}, "more than the 2 logical workers"),
        ({"sync": "local(2,workers=2)", "assign": (6, 2)}, "splits one"),
        ({"sync": "local(2)", "assign": (8, 0)}, "leaves a worker without"),
        ({"sync": "local(2)", "plan": "hybrid", "workers": 2}, "spreads one model over workers"),
        ({"sync": "local(2)", "plan": "pipeline", "workers": 2}, "spreads one model over workers"),
        ({"sync": "local(2)", "codec": "int8@2", "workers": 2}, "for gradients that are exchanged every step"),
        ({"sync": "local(2)", "memory_limit": "800MB", "workers": 2}, "keeps a whole one"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(options: dict[str, Any], words: str, train: Train) -> None:
    with pytest.raises(Refused, match=words):
        train("gpt", **options)


def test_statistics_over_the_whole_batch_are_refused() -> None:
    with pytest.raises(PlanRefused, match="sync_batchnorm computes statistics"):
        logical_of(Plan(Numerics(shards=4, sync="local(2)", sync_batchnorm=True), (4,)))
    with pytest.raises(PlanRefused, match=r"local\(2\) runs on CPUs so far, and --device is cuda"):
        check_local(Plan(Numerics(shards=4, sync="local(2)"), (4,)), "cuda")
    staged = Plan.staged(Numerics(shards=4, sync="local(2)"), [Stage("", (0,), (4,))])
    with pytest.raises(PlanRefused, match="1 stage, "):
        logical_of(staged)


def test_another_policy_does_not_go_on_from_a_checkpoint(small: Train, tmp_path: Path) -> None:
    small(sync="local(2)", workers=1, checkpoint=tmp_path)
    with pytest.raises(Refused, match=r"sync=local\(2\).*sync=local\(3\)"):
        small(sync="local(3)", workers=1, checkpoint=tmp_path, resume=True)


def test_the_default_number_of_workers_fits_the_logical_ones(small: Train) -> None:
    report = small(sync="local(2,workers=1)")
    assert report.assign == (4,)


def test_a_plan_at_its_meetings_has_logical_workers_for_shards() -> None:
    plan = Plan(Numerics(shards=8, sync="local(2,workers=4)"), (6, 2))
    assert at_meetings(plan).assign == (3, 1)
    assert at_meetings(plan).numerics.shards == 4
    exact = Plan(Numerics(shards=8), (6, 2))
    assert at_meetings(exact) is exact

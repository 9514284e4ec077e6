"""stale(s): updates use the gradients of s steps ago. Who does the work does not change a bit."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import samestep
from hosts import HostsUnavailable, report_of
from jobs import stale as jobs
from pairwise import crossed, in_turn
from plainly import batch_of, distance, initial_model, moves, parameters_of
from samestep.errors import Disagreement, PlanRefused, Refused, TrainingFailed
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.progress import summary
from samestep.numerics.numerics import Numerics
from samestep.parallel.gradients.layout import Layout
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.stretches import Stretches, is_first, owners
from samestep.plan.plan import Plan, Stage
from samestep.schedule.actions import Action, Await, Backward, Post, Schedule, Update
from samestep.schedule.checker import check
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.passes import schedule_of
from samestep.schedule.simulator import simulate
from samestep.schedule.stale_steps import check_overlapped, set_of
from samestep.sync.staleness import Bound, check_stale, relative_distance, sample, steps_stale, version_at
from thread_hosts import on

JOBS = Path(jobs.__file__)
Train = Callable[..., Report]


@pytest.fixture(scope="module")
def small(launcher: Launcher) -> Train:
    def run(settings: dict[str, Any] | None = None, **options: Any) -> Report:
        return samestep.train(f"{JOBS}:job", launcher=launcher, settings=settings or {}, **options)

    return run


# Whoever does the work


LAYOUTS = [{"workers": 2}, {"workers": 3}, {"assign": (5, 3)}, {"assign": (1, 6, 1)}, on(1, 1), on(2, 2), on(1, 2, 1)]


@pytest.mark.parametrize(
    ("family", "sync", "layout"),
    crossed(
        ["mlp", "cnn", "gpt", "embedding"], ["stale(1)", "stale(2)"], LAYOUTS, whole=lambda family, *_: family == "mlp"
    ),
    ids=str,
)
def test_one_digest_whoever_does_the_work(
    family: str, sync: str, layout: dict[str, Any], train: Train, alone: Train
) -> None:
    """Five steps, the third one short. The MLP has dropout and is evaluated, the CNN BatchNorm and clipping, the
    GPT a tied head, clipping and AdamW, the last one Adagrad, whose state is there from the start."""
    expected = alone(family, sync=sync)
    assert expected.digest != alone(family).digest
    found = train(family, sync=sync, **layout)
    assert found.digest == expected.digest
    assert found.losses == expected.losses
    assert found.metrics == expected.metrics
    assert found.sync == expected.sync
    state, wanted = found.state_dict(), expected.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", ["norm", "sometimes"])
def test_gradients_that_come_and_go_and_statistics_of_the_whole_batch(kind: str, small: Train) -> None:
    """`None` is remembered with its own step: an update skips what had no gradient then, not what has none now."""
    settings = {"kind": kind, "clip": 0.5, "sync_batchnorm": kind == "norm"}
    expected = small(settings, sync="stale(2)", workers=1)
    for layout in ({"workers": 3}, on(1, 1), on(1, 2, 1)):
        assert small(settings, sync="stale(2)", **layout).digest == expected.digest, layout


@pytest.mark.parametrize("codec", ["int8@2", "topk:0.1@1,2"])
def test_a_codec_goes_with_it(codec: str, train: Train, alone: Train) -> None:
    """Each edge of the tree is crossed once per step, in the order of steps, however late."""
    expected = alone("gpt", sync="stale(1)", codec=codec)
    assert expected.digest != alone("gpt", sync="stale(1)").digest
    for layout in ({"workers": 3}, on(2, 2), on(1, 2, 1)):
        assert train("gpt", sync="stale(1)", codec=codec, **layout).digest == expected.digest, layout


def test_workers_may_hold_their_parts_of_the_model_only(train: Train, alone: Train) -> None:
    found = train("gpt", sync="stale(1)", workers=2, memory_limit=800_000_000)
    assert found.digest == alone("gpt", sync="stale(1)").digest


@pytest.mark.hosts
def test_real_hosts_give_the_same_digest(train: Train, alone: Train) -> None:
    job = Path(__file__).parents[1] / "jobs" / "grids.py"
    try:
        found = report_of([1, 2], f"{job}:cnn", "--sync", "stale:1", "--plan", "data")
    except HostsUnavailable as reason:
        pytest.skip(str(reason))
    expected = alone("cnn", sync="stale(1)")
    assert found["digest"] == expected.digest
    assert found["sync"] == expected.sync


# What it computes


def delayed(job: samestep.Job, stale: int, steps: int) -> tuple[nn.Module, list[float], int]:
    """The policy as anybody would write it, on the whole batch: gradients wait in a queue. Also the updates made."""
    model = initial_model(job)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = job.optimizer(params)
    scheduler = None if job.scheduler is None else job.scheduler(optimizer)
    waiting: deque[list[torch.Tensor | None]] = deque()
    losses, updates = [], 0
    for step in range(steps):
        x, y = batch = batch_of(job.data, step, job.batch_size)
        if job.forward is None:
            loss = nn.functional.cross_entropy(model(x), y)
        else:
            total, count = job.forward(model, batch)
            loss = total / count
        waiting.append(list(torch.autograd.grad(loss, params, allow_unused=True)))
        losses.append(float(loss.detach()))
        if len(waiting) <= stale:
            continue
        for param, grad in zip(params, waiting.popleft(), strict=True):
            param.grad = grad
        if job.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(params, job.clip_grad_norm)
        optimizer.step()
        updates += 1
        if scheduler is not None:
            scheduler.step()
    return model, losses, updates


VARIANTS: list[dict[str, Any]] = [
    {},
    {"clip": 0.3},
    {"kind": "counted"},
    {"optimizer": "adam"},
    {"kind": "sometimes", "optimizer": "adam"},
    {"optimizer": "adagrad"},
]


@pytest.mark.parametrize(("settings", "stale"), in_turn(VARIANTS, [1, 2, 4], whole={}), ids=str)
def test_it_is_a_plain_loop_whose_gradients_wait_in_a_queue(settings: dict[str, Any], stale: int, small: Train) -> None:
    job = jobs.job(**settings)
    model, losses, updates = delayed(job, stale, jobs.STEPS)
    found = small(settings, sync=f"stale({stale})", workers=2)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert found.sync["updates"] == updates == jobs.STEPS - stale
    before = parameters_of(initial_model(job).state_dict(), model)
    wanted, state = moves(parameters_of(model.state_dict(), model), before), found.state_dict()
    for name, move in moves(parameters_of(state, model), before).items():
        assert distance(move, wanted[name]) < 1e-4, name


def test_the_plain_loop_tells_other_delays_apart() -> None:
    """Else the test above could not fail."""
    ends = [delayed(jobs.job(), stale, jobs.STEPS)[0].state_dict() for stale in (0, 1, 2)]
    for a, b in ((0, 1), (1, 2)):
        assert max(distance(ends[a][name], ends[b][name]) for name in ends[a]) > 1e-2


def test_no_staleness_is_exact(train: Train, alone: Train) -> None:
    expected = alone("gpt")
    for layout in ({"workers": 1}, {"workers": 2}, on(1, 2, 1)):
        found = train("gpt", sync="stale(0)", **layout)
        assert (found.digest, found.losses, found.sync) == (expected.digest, expected.losses, {})
    assert "sync=exact" in found.numerics


def test_the_first_steps_make_no_update(small: Train, launcher: Launcher) -> None:
    start = initial_model(jobs.job()).state_dict()
    for steps in (1, 2, 3):
        found = small({"steps": steps}, sync="stale(3)", workers=2)
        assert found.sync == {"bound": 3, "staleness": 0, "divergence": 0.0, "updates": 0}
        assert all(torch.equal(value, start[name]) for name, value in found.state_dict().items())
    one = small({"steps": 4}, sync="stale(3)", workers=2)
    assert (one.sync["updates"], one.sync["staleness"]) == (1, 0), "the first gradient is not late at all"
    assert any(not torch.equal(value, start[name]) for name, value in one.state_dict().items())


# Going on


@pytest.mark.parametrize(
    ("sync", "steps", "first", "then"),
    [
        ("stale(1)", 3, {"workers": 1}, {"workers": 3}),
        ("stale(2)", 3, {"workers": 2}, on(1, 2, 1)),
        ("stale(2)", 1, on(1, 2, 1), {"workers": 1}),
        ("stale(3)", 4, on(2, 2), {"assign": (1, 6, 1)}),
    ],
)
def test_a_run_goes_on_with_other_workers(
    sync: str, steps: int, first: dict[str, Any], then: dict[str, Any], train: Train, alone: Train, tmp_path: Path
) -> None:
    """Gradients under way are in the checkpoint: also from within the first steps, where there is nothing else."""
    train("gpt", sync=sync, steps=steps, checkpoint=tmp_path, **first)
    found = train("gpt", sync=sync, steps=7, checkpoint=tmp_path, resume=True, **then)
    expected = alone("gpt", sync=sync, steps=7)
    assert found.digest == expected.digest
    assert found.losses == expected.losses[steps:]


def test_a_codec_and_gradients_under_way_go_on_together(train: Train, alone: Train, tmp_path: Path) -> None:
    options = {"sync": "stale(2)", "codec": "int8@1,2"}
    train("gpt", steps=3, checkpoint=tmp_path, **options, **on(2, 2))
    found = train("gpt", steps=7, checkpoint=tmp_path, resume=True, **options, workers=3)
    assert found.digest == alone("gpt", steps=7, **options).digest


def test_a_restored_state_is_the_saved_one(train: Train, tmp_path: Path) -> None:
    expected = train("cnn", sync="stale(2)", steps=4, checkpoint=tmp_path, workers=2)
    again = train("cnn", sync="stale(2)", steps=4, checkpoint=tmp_path, resume=True, **on(1, 2, 1))
    assert again.digest == expected.digest


def test_checkpoints_on_the_way_change_nothing(train: Train, alone: Train, tmp_path: Path) -> None:
    """They sum what is under way ahead of its turn."""
    for layout in ({"workers": 3}, on(1, 2, 1)):
        found = train("cnn", sync="stale(2)", checkpoint=tmp_path / str(len(layout)), every=1, **layout)
        assert found.digest == alone("cnn", sync="stale(2)").digest


def test_the_digest_has_the_policy_and_what_is_under_way(small: Train) -> None:
    """After one step nothing has changed yet, under any policy with a delay; the runs will go on differently."""
    one, two = (small({"steps": 1}, sync=f"stale({s})", workers=1) for s in (1, 2))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.digest != two.digest
    other = small({"steps": 1, "kind": "plain", "clip": 0.0}, sync="stale(1)", workers=1, seed=0)
    assert other.digest == one.digest


def test_a_checkpoint_of_another_policy_is_refused(train: Train, tmp_path: Path) -> None:
    train("mlp", sync="stale(1)", steps=2, checkpoint=tmp_path, workers=1)
    with pytest.raises(Refused, match=r"stale\(1\)"):
        train("mlp", sync="stale(2)", steps=4, checkpoint=tmp_path, resume=True, workers=1)


# The bound


def test_every_read_is_held_to_its_version() -> None:
    bound = Bound(2, torch.tensor([3, 3]))
    assert bound.read(5, (0, 1)) == 3
    for step, found, words in ((6, 3, "3 behind"), (4, 3, "1 behind"), (1, 3, "-2 behind")):
        with pytest.raises(
            Disagreement, match=f"step {step} reads parameters of worker 0 after {found} updates, {words}"
        ):
            bound.read(step, (0, 1))
    bound.versions[1] = 2
    with pytest.raises(
        Disagreement, match=r"worker 1 after 2 updates, 3 behind: stale\(2\) reads them after 3, 2 behind"
    ):
        bound.read(5, (0, 1))


def test_every_use_is_held_to_the_bound() -> None:
    bound = Bound(2, torch.tensor([0]))
    for step, computed_on in ((0, 0), (1, 0), (2, 0), (3, 1)):
        bound.use(step, computed_on, step)
    assert (bound.staleness, bound.updates) == (2, 4)
    with pytest.raises(
        Disagreement, match=r"computed after 1 updates, is about to be applied after 4, 3 late: stale\(2\)"
    ):
        bound.use(4, 1, 4)
    with pytest.raises(Disagreement, match="is about to be applied after 5"):
        bound.use(4, 2, 5)


@given(st.integers(0, 50), st.integers(1, 9))
def test_a_step_reads_what_so_many_updates_have_made(step: int, stale: int) -> None:
    """Replayed: an update a step, but for the first ones."""
    updates = 0
    for number in range(step + 1):
        assert version_at(number, stale) == updates
        updates += number >= stale


@pytest.mark.parametrize("transport", ["processes", "threads"])
def test_a_lost_update_is_a_disagreement(transport: str, launcher: Launcher) -> None:
    with pytest.raises(TrainingFailed, match="step 3 reads parameters of worker 1 after 1 updates, 2 behind"):
        samestep.train(f"{JOBS}:forgetful", launcher=launcher, workers=2, transport=transport)


def test_the_run_ends_with_what_it_has_seen(alone: Train) -> None:
    report = alone("mlp", sync="stale(2)")
    assert report.as_json()["sync"] == report.sync
    far = f"{report.sync['divergence']:.2%}"
    said = f"sync: gradients were applied at most 2 updates late (bound 2), to parameters up to {far} from those that"
    assert said in summary(report)
    assert "; 3 updates, and the gradients of the last 2 steps are in checkpoints only" in summary(report)
    assert "at most 1 update late (bound 1)" in summary(alone("mlp", sync="stale(1)"))
    assert "sync:" not in summary(alone("mlp"))


def test_what_parameters_are_apart_is_measured_on_a_sample_that_nobody_deals_out() -> None:
    flat, small = torch.arange(70_000.0), torch.ones(3)
    found = sample([flat, small])
    assert found[:64].equal(flat[:64].double())
    assert found[64:128].equal(flat[32_768:32_832].double())
    assert found[128:192].equal(flat[65_536:65_600].double())
    assert len(found) == 3 * 64 + 3
    assert relative_distance(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(4 / 5)
    assert (relative_distance(small, small), relative_distance(torch.ones(2), torch.zeros(2))) == (0.0, math.inf)


def test_the_divergence_is_that_of_plain_training(small: Train) -> None:
    """The parameters of nine steps, by hand: each version held against the one so many updates before."""
    found = small({}, sync="stale(2)", workers=2)
    versions = []
    for updates in range(jobs.STEPS - 2):
        model, _, made = delayed(jobs.job(), 2, updates + 2)
        assert made == updates
        versions.append(torch.cat([param.detach().reshape(-1)[:64].double() for param in model.parameters()]))
    pairs = [(versions[version_at(k, 2)], versions[k]) for k in range(len(versions)) if k >= 0]
    assert found.sync["divergence"] == pytest.approx(max(relative_distance(old, new) for old, new in pairs), rel=1e-3)


# Its schedules


def steps_of(grid: Grid, stale: int, count: int, *, clip: bool = False) -> list[list[Schedule]]:
    return [
        [
            schedule_of(grid, "1f1b", rank, clip=clip, stale=stale, filling=step < stale)
            for rank in range(grid.num_workers)
        ]
        for step in range(count)
    ]


PAIR = Grid(4, 1, (StageGrid((0, 1), (2, 2), (False,)),))


def test_two_steps_as_drawn() -> None:
    first, second = (step[0] for step in steps_of(PAIR, 1, 2, clip=True))
    assert " ".join(type(action).__name__ for action in first[5:]) == "Agree MergeBuffers Post Publish"
    assert " ".join(type(action).__name__ for action in second[5:]) == (
        "Agree MergeBuffers Await Reduce Clip Post Update Publish"
    )
    assert Await(1) in second


@given(stale=st.integers(1, 5), clip=st.booleans(), shares=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_the_schedules_are_proven(stale: int, clip: bool, shares: list[int]) -> None:
    shares[0] += 1
    grid = Grid(sum(shares), 1, (StageGrid(tuple(range(len(shares))), tuple(shares), (False,)),))
    steps = steps_of(grid, stale, 2 * stale + 3, clip=clip)
    for step in (steps[0], steps[-1]):
        check(grid, step, 10)
    check_overlapped(grid, steps, stale)


def changed(step: int, change: Callable[[Schedule], Schedule]) -> list[list[Schedule]]:
    steps = steps_of(PAIR, 1, 5)
    steps[step][1] = change(steps[step][1])
    return steps


def without(action: Action) -> Callable[[Schedule], Schedule]:
    return lambda schedule: tuple(other for other in schedule if other != action)


def instead(old: Action, new: Action) -> Callable[[Schedule], Schedule]:
    return lambda schedule: tuple(new if other == old else other for other in schedule)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            changed(2, without(Await(1))),
            r"step 2: Reduce\(\) comes before any gradient is awaited: begin with Await\(1\)",
        ),
        (changed(2, instead(Await(1), Await(2))), "step 2: .* awaits step 0, which has no gradients in flight"),
        (changed(2, instead(Await(1), Await(0))), "step 2: .* awaits step 2, which has no gradients in flight"),
        (changed(1, without(Post())), "step 2: .* awaits step 1, which has no gradients in flight"),
        (steps_of(PAIR, 1, 1) * 3, "step 2: its gradients are written to set 0 of 2, which still has those of step 0"),
    ],
)
def test_wrong_steps_are_named(steps: list[list[Schedule]], words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        check_overlapped(PAIR, steps, 1)


def test_the_checker_wants_one_end_of_all() -> None:
    _, second = steps_of(PAIR, 1, 2)
    for change in (without(Post()), instead(Await(1), Await(2)), without(Update())):
        with pytest.raises(
            PlanRefused, match=r"worker 1 ends with .*; every step ends with Agree\(\) MergeBuffers\(\)"
        ):
            check(PAIR, [second[0], change(second[1])], 10)


@given(computing=st.floats(0.5, 3), wire=st.floats(0.5, 3), stale=st.integers(1, 3))
def test_a_step_takes_what_is_longer(computing: float, wire: float, stale: int) -> None:
    def cost(rank: int, action: Action) -> float:
        return computing / 2 if isinstance(action, Backward) else 0.0

    def transfer(rank: int, action: Action) -> float:
        return wire if isinstance(action, Post) else 0.0

    count = 8
    lists = [tuple(action for step in steps_of(PAIR, stale, count) for action in step[rank]) for rank in (0, 1)]
    outcome = simulate(PAIR, lists, cost=cost, transfer=transfer)
    assert not outcome.waits
    posted: list[float] = []  # by hand: when each step is over, and when what it posted is there
    arrived: list[float] = []
    for step in range(count):
        done = max((posted[-1] if posted else 0.0) + computing, arrived[-1] if arrived else 0.0)  # to agree comes last
        posted.append(max(done, arrived[step - stale]) if step >= stale else done)
        arrived.append(max(posted[-1], arrived[-1] if arrived else 0.0) + wire)
    ends = [s.stop for action, s in zip(lists[0], outcome.spans[0], strict=True) if isinstance(action, Post)]
    assert ends == pytest.approx(posted)
    assert ends[-1] - ends[-2] == pytest.approx(max(computing, wire))


def test_sets_take_turns() -> None:
    assert [set_of(step, 2) for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]


# Hosts


@pytest.mark.parametrize("hosts", [(0, 1, 1, 2), (0, 0, 1, 1, 2), (0, 1, 2, 3)])
def test_every_host_updates_everything_and_nobody_waits_for_values(hosts: tuple[int, ...]) -> None:
    layout = Layout(
        [("weight", nn.Parameter(torch.zeros(100_000)), None), ("bias", nn.Parameter(torch.zeros(7)), None)]
    )
    homes = [Ownership(tuple(range(len(hosts))), (1,) * len(hosts), on_every_host=True)] * 2
    pieces = owners(layout, homes, hosts, whole=False)
    for host in set(hosts):
        here = [piece for rank, own in enumerate(pieces) if hosts[rank] == host for piece in own]
        assert sum(piece.stop - piece.start for piece in here) == 100_007
    found = Stretches(layout, homes, hosts, pieces)
    assert (found.values, found.everywhere) == ([], [])
    sent = {(hosts[s.sender], hosts[s.receiver]): 0 for s in found.gradients}
    for s in found.gradients:
        sent[hosts[s.sender], hosts[s.receiver]] += s.stop - s.start
    pairs = {(a, b) for a in hosts for b in hosts if a != b}
    assert sent == dict.fromkeys(pairs, 100_007), "each host gives its sums to every other one once"
    assert [is_first(homes[0], hosts, rank) for rank in range(len(hosts))] == [host == hosts[0] for host in hosts]


def test_bytes_are_told_before(train: Train) -> None:
    """Between two hosts as many as exact steps move; between three, (H-1) G of each."""
    for layout in (on(1, 1), on(2, 2), on(1, 2, 1)):
        report = train("mlp", sync="stale(1)", steps=6, epochs=9, **layout)
        exact = train("mlp", steps=6, epochs=9, **layout)
        wired, other = (sum(t.wired - t.framed for t in one.times) for one in (report, exact))
        if len(layout["hosts"]) == 2:
            assert wired == other
        else:
            assert 1.4 * other < wired < 1.6 * other, "6 G instead of 4 G"


# What it cannot serve


def plan(*stages: Stage) -> Plan:
    numerics = Numerics(shards=4, sync="stale(1)")
    return Plan.staged(numerics, stages) if stages else Plan(numerics, (2, 2))


def test_plans_that_it_cannot_serve_are_refused_with_the_reason() -> None:
    check_stale(plan())
    assert steps_stale(plan()) == 1
    assert steps_stale(replace(plan(), numerics=Numerics(shards=4, sync="local(4)"))) == 0
    with pytest.raises(
        PlanRefused, match=r"stale\(1\) lets gradients .* moves activations, .*--plan data, or --sync exact"
    ):
        check_stale(plan(Stage("", (0,), (4,)), Stage("head", (1,), (4,))))
    with pytest.raises(PlanRefused, match=r"stale\(1\) runs on CPUs so far, and --device is cuda"):
        check_stale(plan(), "cuda")


@pytest.mark.parametrize("preset", ["pipeline", "slices"])
def test_a_preset_with_stages_is_refused(preset: str, train: Train) -> None:
    with pytest.raises(Refused, match="moves activations, for which the step itself waits"):
        train("mlp", sync="stale(1)", plan=preset, workers=2)


def test_the_past_has_an_end(train: Train) -> None:
    with pytest.raises(Refused, match="gradients of the future"):
        train("mlp", sync="stale(-1)", workers=1)


def test_shards_are_not_dealt_anew(train: Train) -> None:
    with pytest.raises(Refused, match=r"--rebalance on: workers agree by stale\(1\)"):
        train("mlp", sync="stale(1)", workers=2, rebalance="on")

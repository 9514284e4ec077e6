"""A cut is asked whether it computes the uncut model's shard: on jobs that keep what it assumes, and on their twins."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import samestep
from samestep.errors import JobRefused, PlanRefused, Refused
from samestep.launch.run.launcher import Launcher
from samestep.numerics.numerics import Numerics
from samestep.parallel.gradients import linear
from samestep.parallel.gradients.linear import write_weight_gradients_once
from samestep.plan.plan import Plan, Stage
from samestep.setup import proof, shard_result
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.parallelize import divide, prepare
from samestep.setup.proof import prove_cut, prove_layers
from samestep.setup.shard_result import Shard, by_whole_model, undisturbed

ROWS, WIDTH, SHARDS = 32, 12, 4
JOBS = f"{Path(__file__).parents[1] / 'jobs_bad' / 'unproven.py'}:"


class Net(nn.Module):
    """Four layers; what one layer does is a parameter of the test."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.norm, self.drop, self.between = nn.BatchNorm1d(WIDTH), nn.Dropout(0.3), between
        self.register_buffer("seen", torch.zeros(()))
        self.kept = torch.zeros(())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.a(x)))
        h = self.norm(self.between(self, h))
        return self.c(F.relu(self.b(h)))  # type: ignore[no-any-return]


def job_of(model: Callable[[], nn.Module], **options: Any) -> samestep.Job:
    data = torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)
    settings = {"loss": nn.MSELoss(), "data": data, "batch_size": 16, "shards": SHARDS} | options
    return samestep.Job(model=model, optimizer=lambda p: torch.optim.SGD(p, 0.1), **settings)


def cut(job: samestep.Job, *stages: Stage, slices: str = "none") -> tuple[Plan, LaidOutModel]:
    torch.manual_seed(0)
    plan = Plan.staged(Numerics(shards=SHARDS, slices=slices), stages)
    return plan, divide(job, plan, prepare(job, job.build_model()))


def in_stages(job: samestep.Job, first: str = "b") -> tuple[Plan, LaidOutModel]:
    return cut(job, Stage("", (0,), (SHARDS,)), Stage(first, (1,), (SHARDS,)))


def in_slices(job: samestep.Job) -> tuple[Plan, LaidOutModel]:
    return cut(job, Stage("", (0, 1), (2, 2), (("a", (2, 2)), ("b", (1, 2)))), slices="a:4,b:3")


def plain(net: Net, h: Tensor) -> Tensor:
    return h * 2 + net.seen


def counts_in_place(net: Net, h: Tensor) -> Tensor:
    net.seen += 1
    return h + net.seen


def counts_anew(net: Net, h: Tensor) -> Tensor:
    net.seen = net.seen + 1
    return h + net.seen


def counts_in_python(net: Net, h: Tensor) -> Tensor:
    net.calls = net.calls + 1
    return h


def leaves_a_value(net: Net, h: Tensor) -> Tensor:
    """On the module, and reads what the forward before left there."""
    before, net.kept = net.kept, h.detach().mean()
    return h + before * h.square()


@pytest.mark.parametrize("cutting", [in_stages, in_slices])
@pytest.mark.parametrize("between", [lambda net, h: h, plain, counts_in_place])
def test_a_cut_that_keeps_what_it_assumes_is_proven(cutting: Any, between: Any) -> None:
    job = job_of(lambda: Net(between))
    plan, prepared = cutting(job)
    assert prove_cut(job, plan, prepared) == ""


@pytest.mark.parametrize("cutting", [in_stages, in_slices])
@pytest.mark.parametrize(
    ("between", "says"),
    [
        (counts_anew, "another buffer seen .*code around the layers replaces it"),
        (counts_in_python, r"calls = 0 after forward where the uncut one gives 1.*does not run that code"),
        (leaves_a_value, "uses kept, a tensor that an earlier batch left there; .* --plan data"),
    ],
)
def test_a_twin_that_does_not_is_refused_with_the_place(cutting: Any, between: Any, says: str) -> None:
    job = job_of(lambda: Net(between))
    with pytest.raises(Refused, match=says):
        prove_cut(job, *cutting(job))


@given(st.sampled_from(["loss", "gradient", "buffer", "streams", "none"]), st.floats(1e-4, 1.0))
def test_any_value_that_differs_is_found_and_named(kind: str, off: float) -> None:
    """The uncut result is that of the cut one with one value moved."""
    job = job_of(Net)
    _, prepared = in_slices(job)
    shard = Shard((torch.randn(4, WIDTH), torch.randn(4, 1)), (0, "step", 0, 0))
    found = by_whole_model(job, prepared, shard)
    wanted = {
        "loss": lambda: dataclasses.replace(found, loss=found.loss * (1 + off)),
        "gradient": lambda: dataclasses.replace(
            found, gradients=found.gradients | {"b.weight": found.gradients["b.weight"] * (1 + off)}
        ),
        "buffer": lambda: dataclasses.replace(
            found, buffers=found.buffers | {"norm.running_mean": found.buffers["norm.running_mean"] + off}
        ),
        "streams": lambda: dataclasses.replace(
            found, streams=found.streams._replace(torch=torch.get_rng_state().roll(1))
        ),
        "none": lambda: found,
    }[kind]()
    differences = list(proof.differences(found, wanted, proof.bit_for_bit))
    assert len(differences) == (kind != "none")
    if kind in ("gradient", "buffer"):
        assert differences[0].name in ("b.weight", "norm.running_mean")
    rough = proof.up_to_rounding(found, by_whole_model(job, prepared, shard, moved=True))
    assert len(list(proof.differences(found, wanted, rough))) == (kind != "none")


def test_no_gradient_and_a_gradient_of_zeros_are_not_the_same() -> None:
    job = job_of(Net)
    _, prepared = in_stages(job)
    shard = Shard((torch.randn(4, WIDTH), torch.randn(4, 1)), (0, "step", 0, 0))
    found = by_whole_model(job, prepared, shard)
    lacks = dataclasses.replace(found, gradients=found.gradients | {"a.bias": None})
    zeros = dataclasses.replace(found, gradients=found.gradients | {"a.bias": torch.zeros(WIDTH)})
    for one, other, says in ((lacks, zeros, "no gradient of a.bias"), (zeros, lacks, "a gradient of a.bias")):
        assert next(proof.differences(one, other, proof.bit_for_bit)).text("it").startswith(says)


def test_a_proof_leaves_no_trace() -> None:
    net = Net(counts_anew)
    net.kept = torch.ones(())
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    buffers, streams = dict(net.named_buffers()), torch.get_rng_state()
    net.a.weight.grad = grad = torch.ones(WIDTH, WIDTH)
    with undisturbed(net):
        net(torch.randn(4, WIDTH)).sum().backward()
        net.kept, net.new = net.seen + 1, 3  # type: ignore[assignment]
        assert net.seen == 1
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before
    assert all(buffer is buffers[name] for name, buffer in net.named_buffers())
    assert net.seen == 0
    assert net.a.weight.grad is grad
    assert net.b.weight.grad is None
    assert torch.equal(torch.get_rng_state(), streams)


def test_layers_of_samesteps_own_are_held_against_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(Net)
    prepared = prepare(job, job.build_model())
    batch = torch.randn(4, WIDTH), torch.randn(4, 1)
    write_weight_gradients_once(prepared.model, lambda param: lambda: None)
    prove_layers(job, prepared, {0: batch}, 0)
    whole = linear._weight_gradient
    monkeypatch.setattr(linear, "_weight_gradient", lambda *parts: whole(*parts) * (1 + 1e-4))
    with pytest.raises(
        JobRefused, match=r"another gradient of \w\.weight \(1.0e-04 off\) than torch on shard 0 of step 0"
    ):
        prove_layers(job, prepared, {0: batch}, 0)


def test_the_model_that_does_not_fit_is_proven_on_what_does() -> None:
    job = job_of(Net)
    plan, prepared = in_slices(job)
    lazy = dataclasses.replace(prepared, initial=object())  # type: ignore[arg-type]
    values = [param.data for param in prepared.model.parameters()]
    size = 4 * WIDTH * WIDTH
    assert prove_cut(job, plan, lazy, proof.FITS * (3 * size)) == ""
    assert prove_cut(job, plan, lazy, proof.FITS * (size + 4 * WIDTH)) == (
        "the cut is proven on 2 of 8 parameters, as many as fit"
    )
    assert all(a is b for a, b in zip(values, (p.data for p in prepared.model.parameters()), strict=True)) or values
    assert all(param.requires_grad for param in prepared.model.parameters())


def test_what_holds_at_first_and_no_longer_is_found_at_the_record_where_it_stops(launcher: Launcher) -> None:
    """A last batch of another size takes another way that leaves a value behind."""
    with pytest.raises(Refused, match="the model cut as the plan says"):
        samestep.train(JOBS + "at_the_short_batch", plan="pipeline", workers=2, launcher=launcher)
    assert samestep.train(JOBS + "at_the_short_batch", plan="data", workers=2, launcher=launcher).steps


def test_what_stops_to_hold_between_records_is_found_by_a_proof_now_and_then(launcher: Launcher) -> None:
    with pytest.raises(Refused, match="the model cut as the plan says"):
        samestep.train(JOBS + "after_steps", plan="pipeline", workers=2, launcher=launcher, audit=4)


def test_shards_are_looked_for_that_were_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(proof, "prove_shard", lambda job, plan, prepared, batch, number: asked.append(number))
    job = job_of(Net)
    prove_cut(job, *in_stages(job))
    assert asked == [1]


def test_dropout_of_every_kind_is_left_out_where_slices_draw_masks_of_their_own() -> None:
    x = torch.randn(2, 3, 8, 8)
    with shard_result._WithoutDropout():
        before = torch.get_rng_state()
        for function in (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout):
            one = x[0] if function is F.dropout1d else x
            assert torch.equal(function(one, 0.5, training=True), one)
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        nn.MultiheadAttention(8, 2, dropout=0.5)(x[0], x[0], x[0])
    assert torch.equal(before, before)


def test_a_plan_that_is_refused_says_both_sides_and_the_way_out() -> None:
    error = proof.refused("gives a loss of 1 where the uncut one gives 2", "for a reason")
    assert isinstance(error, PlanRefused)
    for part in ("the model cut as the plan says", "uncut one gives 2", ": for a reason. Use --plan data"):
        assert part in str(error)


def test_a_forward_that_runs_only_without_a_record_is_refused_with_the_place() -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        slope = torch.func.vmap(torch.func.grad(lambda x: model(x[None]).sum()))(batch[0])
        return (slope.sum(1) - batch[1].squeeze(1)).square().mean()

    layers = (nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    job = dataclasses.replace(job_of(lambda: nn.Sequential(*layers)), loss=None, forward=forward)
    with pytest.raises(JobRefused, match=r"inside of torch.func \(at test_proof.py:\d+\), .* --plan data"):
        in_stages(job, "2")


def test_a_gradient_that_arrives_where_nobody_keeps_it_is_lost_in_the_proof_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(Net)
    plan, prepared = in_stages(job)
    of = shard_result._stages
    monkeypatch.setattr(shard_result, "_stages", lambda prepared: of(prepared) | {"a.weight": 1})
    with pytest.raises(PlanRefused, match=r"no gradient of a\.weight where the uncut one gives one"):
        prove_cut(job, plan, prepared)


class Remembers(nn.Module):
    """Draws from a generator of its own, reads what the forward before left, or averages over all that it has seen."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind, self.last = nn.Linear(WIDTH, 1), kind, 0.0
        self.generator, self.seen = torch.Generator().manual_seed(1), list[float]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        before, self.last = self.last, float(y.detach().mean())
        self.seen.append(float(x.mean()))
        drawn = torch.rand((), generator=self.generator)
        return (
            y + {"draws": drawn, "reads": before, "averages": sum(self.seen) / len(self.seen), "none": 0.0}[self.kind]
        )


@pytest.mark.parametrize("kind", ["draws", "reads", "averages"])
def test_a_forward_that_does_not_repeat_is_refused_under_data_parallelism_as_well(kind: str) -> None:
    batches = {shard: (torch.randn(4, WIDTH), torch.randn(4, 1)) for shard in range(2)}
    for one in (kind, "none"):
        job = job_of(lambda one=one: Remembers(one))  # type: ignore[misc]
        prepared = prepare(job, job.build_model())
        if one == "none":
            prove_layers(job, prepared, batches, 0)
            continue
        with pytest.raises(JobRefused, match=r"again on the same shard .*\(it changed last.* keep it in a buffer"):
            prove_layers(job, prepared, batches, 0)


class Makes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(WIDTH, 1), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "made" and not hasattr(self, "late"):
            self.late = nn.Linear(WIDTH, WIDTH)
        if self.how == "replaced":
            self.layer.bias = nn.Parameter(torch.zeros(1))
        return self.layer(self.late(x) if self.how == "made" else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("how", "name"), [("made", "late.weight"), ("replaced", "layer.bias")])
def test_a_forward_that_makes_parameters_is_refused_by_name(how: str, name: str) -> None:
    job = job_of(lambda: Makes(how))
    prepared = prepare(job, job.build_model())
    with pytest.raises(JobRefused, match=f"forward has {how} the parameter {name}"):
        prove_layers(job, prepared, {0: (torch.randn(4, WIDTH), torch.randn(4, 1))}, 0)

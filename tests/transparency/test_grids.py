"""Slices, stages, and both with data parallelism: one digest per grid, whoever computes which cell."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs import grids
from pairwise import crossed, in_turn
from samestep.errors import Refused
from samestep.job.report import Report
from samestep.numerics.numerics import Numerics, parse_line
from samestep.plan.plan import Plan, Stage
from samestep.schedule.grid import Grid, StageGrid
from samestep.schedule.orders.greedy import greedy_order
from samestep.schedule.orders.race import WorkTimes
from samestep.schedule.orders.written import spell_order

JOBS = Path(__file__).parents[1] / "jobs" / "grids.py"
S = grids.SHARDS
Train = Callable[..., Report]

FIRST_OF_SECOND = {"mlp": "body.5", "cnn": "full", "gpt": "blocks.1", "resnet": "layers.1", "embedding": "hidden"}
FIRST_OF_THIRD = {"mlp": "head", "cnn": "head", "gpt": "norm", "resnet": "head", "embedding": "head"}
SLICED = {  # layers of the first stage and of the second
    "mlp": (["body.0", "body.2"], ["body.5", "head"]),
    "cnn": (["conv2"], ["full", "head"]),
    "gpt": (["blocks.0.up", "blocks.0.down", "places"], ["blocks.1.qkv", "blocks.2.up", "blocks.2.down"]),
    "resnet": (["stem", "layers.0.conv2"], ["layers.2.conv1", "head"]),
    "embedding": (["embedding", "bag"], ["hidden", "head"]),
}
K = 4


def two_stages(family: str, *groups: tuple[tuple[int, ...], tuple[int, ...]], again: bool = False) -> list[Stage]:
    firsts = ["", FIRST_OF_SECOND[family], FIRST_OF_THIRD[family]]
    return [Stage(first, *group, (), again) for first, group in zip(firsts, groups, strict=False)]


PIPELINES = [  # (workers, shards of each) per stage, order, depth, recomputation, transport
    ([((0,), (S,)), ((1,), (S,))], "1f1b", 1, False, "processes"),
    ([((0,), (S,)), ((1,), (S,))], "gpipe", 1, False, "threads"),
    ([((0,), (S,)), ((1,), (S,))], "1f1b", 3, True, "threads"),
    ([((1,), (S,)), ((0,), (S,))], "gpipe", 1, True, "threads"),
    ([((0,), (S,)), ((0,), (S,))], "1f1b", 1, False, "threads"),
    ([((0,), (S,)), ((1,), (S,)), ((0,), (S,))], "interleaved", 1, False, "processes"),
    ([((0,), (S,)), ((1,), (S,)), ((0,), (S,))], "1f1b", 1, True, "threads"),
    ([((0,), (S,)), ((1,), (S,)), ((2,), (S,))], "1f1b", 2, False, "processes"),
    ([((0, 1, 2), (3, 3, 2)), ((3,), (S,))], "1f1b", 1, False, "processes"),
    ([((0, 1), (5, 3)), ((1, 2), (1, 7))], "1f1b", 1, False, "threads"),
    ([((0,), (S,)), ((1, 2, 3), (1, 6, 1)), ((4, 5), (4, 4))], "gpipe", 1, False, "processes"),
    ([(tuple(range(7)), (2, 1, 1, 1, 1, 1, 1)), ((7,), (S,))], "1f1b", 1, True, "threads"),
    ([((0,), (S,)), ((1,), (S,))], "zero-bubble", 1, False, "processes"),
    ([((0,), (S,)), ((1,), (S,)), ((2,), (S,))], "zero-bubble", 2, True, "threads"),
    ([((0,), (S,)), ((1,), (S,)), ((0,), (S,))], "zero-bubble", 1, False, "threads"),
    ([((0, 1), (5, 3)), ((1, 2), (1, 7)), ((3,), (S,))], "zero-bubble", 1, False, "processes"),
]

SLICINGS = [  # (workers, shards of each), slices of each; transport
    (((0, 1), (4, 4)), (2, 2), "processes"),
    (((0, 1), (5, 3)), (2, 2), "threads"),
    (((0, 1), (8, 0)), (1, 3), "processes"),
    (((0, 1), (2, 6)), (4, 0), "threads"),
    (((0, 1), (8, 0)), (0, 4), "threads"),
    (((0, 1, 2), (3, 3, 2)), (2, 1, 1), "processes"),
    (((0, 1, 2), (6, 1, 1)), (1, 2, 1), "threads"),
    (((0, 1, 2), (4, 0, 4)), (0, 4, 0), "threads"),
    (((0, 1, 2, 3), (2, 2, 2, 2)), (1, 1, 1, 1), "processes"),
    (((0, 1, 2, 3), (1, 0, 0, 7)), (0, 2, 1, 1), "threads"),
    (((0, 1, 2, 3, 4, 5), (2, 2, 1, 1, 1, 1)), (1, 1, 1, 1, 0, 0), "threads"),
    (((0, 1, 2, 3, 4, 5, 6, 7), (1,) * 8), (0, 1, 0, 1, 0, 1, 0, 1), "threads"),
]

BOTH = [  # per stage: (workers, shards of each), slices of each; order, recomputation, transport
    ([(((0, 1), (4, 4)), (2, 2)), (((2,), (S,)), (4,))], "1f1b", False, "processes"),
    ([(((0, 1), (5, 3)), (3, 1)), (((2,), (S,)), (4,))], "gpipe", False, "threads"),
    ([(((0, 1), (5, 3)), (3, 1)), (((1, 2), (0, 8)), (3, 1))], "1f1b", False, "processes"),
    ([(((0, 1), (8, 0)), (0, 4)), (((0, 1), (3, 5)), (1, 3))], "1f1b", True, "threads"),
    ([(((0,), (S,)), (4,)), (((1,), (S,)), (4,))], "1f1b", False, "threads"),
    ([(((0,), (S,)), (4,)), (((1, 2, 3), (4, 2, 2)), (1, 2, 1))], "1f1b", True, "processes"),
    ([(((0, 1, 2), (8, 0, 0)), (0, 1, 3)), (((1, 2), (2, 6)), (4, 0))], "gpipe", True, "threads"),
    ([(((2, 1, 0), (3, 3, 2)), (2, 1, 1)), (((0, 1, 2), (2, 3, 3)), (1, 1, 2))], "interleaved", False, "threads"),
    ([(((0, 1, 2), (3, 3, 2)), (2, 1, 1)), (((3,), (S,)), (4,))], "1f1b", False, "threads"),
    ([(((0, 1, 2, 3), (2, 2, 2, 2)), (1, 1, 1, 1)), (((4, 5), (4, 4)), (2, 2))], "1f1b", False, "threads"),
    (
        [(((0, 1), (4, 4)), (2, 2)), (((2, 3, 4, 5, 6, 7), (2, 2, 1, 1, 1, 1)), (1, 1, 1, 1, 0, 0))],
        "gpipe",
        True,
        "threads",
    ),
    ([(((3, 2, 1, 0), (1, 1, 1, 5)), (1, 1, 1, 1)), (((0,), (S,)), (4,))], "1f1b", False, "threads"),
    ([(((0, 1), (5, 3)), (3, 1)), (((1, 2), (0, 8)), (3, 1))], "zero-bubble", False, "threads"),
]


@pytest.fixture(scope="module")
def numerics(alone: Callable[..., Report]) -> Callable[..., Numerics]:
    def of(family: str, slices: str = "none", join: int = 0) -> Numerics:
        found = parse_line(alone(family).numerics)
        return Numerics(**{**found, "slices": slices, "join": join})  # type: ignore[arg-type]

    return of


def sliced(layers: list[str], counts: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((layer, counts) for layer in layers)


def slices_text(*stages: list[str]) -> str:
    return ",".join(f"{layer}:{K}" for layers in stages for layer in layers)


def in_order(family: str, names: list[str]) -> list[str]:
    """The layers in the model's own order, as a plan keeps them."""
    known = [name for name, _ in getattr(grids, {"mlp": "MLP", "cnn": "CNN", "gpt": "GPT", "resnet": "ResNet",
             "embedding": "Classifier"}[family])().named_modules()]  # fmt: skip
    return sorted(names, key=known.index)


def assert_same(report: Report, reference: Report) -> None:
    assert report.losses == reference.losses
    assert report.digest == reference.digest
    assert report.metrics == reference.metrics


def of_pipeline(family: str, case: int) -> tuple[object, ...]:
    groups, order, depth, again, transport = PIPELINES[case]
    shared = len({worker for workers, _ in groups for worker in workers}) < sum(len(workers) for workers, _ in groups)
    return family, order, depth > 1, again, transport, any(len(workers) > 1 for workers, _ in groups), shared


@pytest.mark.parametrize(
    ("family", "case"),
    crossed(FIRST_OF_SECOND, range(len(PIPELINES)), whole=lambda family, _: family == "mlp", traits=of_pipeline),
)
def test_stages_do_not_change_the_numbers_at_all(
    family: str, case: int, train: Train, alone: Callable[..., Report], numerics: Callable[..., Numerics]
) -> None:
    """The reference is data parallelism on one worker, uncut."""
    groups, order, depth, again, transport = PIPELINES[case]
    stages = two_stages(family, *groups, again=again)
    plan = Plan.staged(numerics(family), stages, transport, order=order, depth=depth)
    assert_same(train(family, plan=plan, transport=transport), alone(family))


def of_slicing(family: tuple[str, str], case: int) -> tuple[object, ...]:
    (workers, shards), counts, transport = SLICINGS[case]
    return family, transport, len(workers) > 2, 0 in shards, 0 in counts, len(set(counts)) == 1


@pytest.mark.parametrize(
    ("model", "case"),
    crossed(
        [*((family, "slices") for family in FIRST_OF_SECOND), ("cnn", "hybrid"), ("resnet", "hybrid")],
        range(len(SLICINGS)),
        whole=lambda family, _: family == ("mlp", "slices"),
        traits=of_slicing,
    ),
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_slices_have_one_digest_whoever_computes_them(
    model: tuple[str, str], case: int, train: Train, numerics: Callable[..., Numerics], alone: Callable[..., Report]
) -> None:
    family, preset = model
    group, counts, transport = SLICINGS[case]
    first, second = SLICED[family]
    layers = in_order(
        family, [*first, *second] if preset == "slices" else [n for n in [*first, *second] if "conv" not in n]
    )
    numbers = numerics(family, slices_text(layers))
    reference = Plan.staged(numbers, [Stage("", (0,), (S,), sliced(layers, (K,)))])
    plan = Plan.staged(numbers, [Stage("", *group, sliced(layers, counts))], transport)
    report = train(family, plan=plan, transport=transport)
    assert_same(report, alone(family, plan=reference))
    assert report.digest != alone(family).digest


def of_both(family: str, case: int) -> tuple[object, ...]:
    stages, order, again, transport = BOTH[case]
    workers = [worker for (group, _), _ in stages for worker in group]
    idle = any(0 in shards for (_, shards), _ in stages)
    return family, order, again, transport, len(set(workers)) < len(workers), idle


@pytest.mark.parametrize(
    ("family", "case"),
    crossed(FIRST_OF_SECOND, range(len(BOTH)), whole=lambda family, _: family == "mlp", traits=of_both),
)
def test_stages_of_slices_too(
    family: str, case: int, train: Train, alone: Callable[..., Report], numerics: Callable[..., Numerics]
) -> None:
    chosen, order, again, transport = BOTH[case]
    layers = [in_order(family, names) for names in SLICED[family]]
    numbers = numerics(family, slices_text(*layers), join=2)
    firsts = ("", FIRST_OF_SECOND[family])
    reference = [Stage(f, (0,), (S,), sliced(names, (K,))) for f, names in zip(firsts, layers, strict=True)]
    stages = [
        Stage(f, *group, sliced(names, counts), again)
        for f, names, (group, counts) in zip(firsts, layers, chosen, strict=True)
    ]
    report = train(family, plan=Plan.staged(numbers, stages, transport, order=order), transport=transport)
    assert_same(report, alone(family, plan=Plan.staged(numbers, reference)))


def test_slices_and_join_sets_are_numerics(train: Train) -> None:
    found = {
        name: train("gpt", workers=1, **options).digest
        for name, options in {
            "whole": {},
            "four": {"plan": "slices"},
            "two": {"plan": "slices", "slices": 2},
            "joined by two": {"plan": "slices", "numerics": "join=2"},
        }.items()
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(("first", "second"), [("hybrid", "hybrid"), ("pipeline", "data"), ("data", "pipeline")])
def test_a_run_may_stop_and_go_on_under_another_assignment(
    first: str, second: str, train: Train, tmp_path: Path
) -> None:
    whole = train("gpt", plan=first, workers=1)
    train("gpt", plan=first, workers=3, steps=2, checkpoint=tmp_path, transport="threads")
    report = train("gpt", plan=second, workers=2, checkpoint=tmp_path, resume=True)
    assert report.digest == whole.digest


@pytest.mark.parametrize("assignment", [{"workers": 2}, {"workers": 3, "assign": (4, 3, 1), "transport": "threads"}])
def test_attention_is_cut_by_heads(assignment: dict[str, object], train: Train, alone: Callable[..., Report]) -> None:
    """5 heads in 4 slices: 2, 1, 1, 1."""
    report = train("encoder", plan="slices", **assignment)
    assert '"layers.0.self_attn" = [' in str(report.plan)
    assert_same(report, train("encoder", plan="slices", workers=1))
    whole = train("encoder", workers=1, settings={"dropout": 0.0}).state_dict()
    weights = train("encoder", plan="slices", **assignment, settings={"dropout": 0.0}).state_dict()
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in whole.items()}
    assert all(torch.allclose(weights[n], whole[n], atol=1e-5) for n in whole)


def test_the_weights_are_whole_again_at_the_end(train: Train) -> None:
    sliced_weights = train("mlp", plan="slices", workers=2).state_dict()
    whole = train("mlp", workers=1).state_dict()
    assert {n: t.shape for n, t in sliced_weights.items()} == {n: t.shape for n, t in whole.items()}
    assert all(float((sliced_weights[n] - whole[n]).abs().max()) < 1e-5 for n in whole)


ORDER = '["F0.0 F0.1 B0.0 F0.2 F0.3 B0.1 B0.2 B0.3", "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 F1.3 B1.3"]'


def by_hand(order: str, shards: int = 4) -> str:
    return (
        f'numerics = "shards={shards}"\norder = {order}\n[[stage]]\nworkers = [0]\nassign = [{shards}]\n'
        f'[[stage]]\nfirst = "head"\nworkers = [1]\nassign = [{shards}]\n'
    )


def test_an_order_may_be_written_by_hand(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(by_hand(ORDER))
    assert train("mlp", plan=str(file)).digest == train("mlp", shards=4, workers=1).digest


def test_gradients_of_weights_may_be_written_by_hand(train: Train, tmp_path: Path) -> None:
    """Of one stage only."""
    file = tmp_path / "plan.toml"
    file.write_text(by_hand(ORDER.replace("B1.3", "B1.3 W1.0 W1.1 W1.2 W1.3")))
    assert train("mlp", plan=str(file)).digest == train("mlp", shards=4, workers=1).digest


GREEDY = [  # workers per stage, of each stage forward, backward, weight; caps, whether backwards are split, transport
    ([(0,), (1,), (2,)], [(1, 2, 0), (3, 6, 0), (1, 1, 0)], [3, 3, 3], False, "processes"),
    ([(0,), (1,), (0,)], [(1, 2, 2), (3, 3, 3), (1, 1, 0)], [4, 4], True, "threads"),
    ([(0,), (1,), (2,)], [(2, 1, 1), (5, 3, 3), (1, 1, 1)], None, True, "processes"),
]


@pytest.mark.parametrize(
    ("family", "case"),
    in_turn(["cnn", "gpt", "mlp"], range(len(GREEDY)), whole="mlp"),
)
def test_orders_that_were_found_for_uneven_stages(
    family: str, case: int, train: Train, alone: Callable[..., Report], numerics: Callable[..., Numerics]
) -> None:
    """Found once, written into the plan; the short batch at the end of an epoch runs its part of it."""
    workers, paces, caps, split, transport = GREEDY[case]
    grid = Grid(S, 1, tuple(StageGrid(group, (S,), (False,), split=split) for group in workers))
    order = spell_order(greedy_order(grid, [WorkTimes(*pace) for pace in paces], 1, caps))
    stages = two_stages(family, *((group, (S,)) for group in workers))
    plan = Plan.staged(numerics(family), stages, transport, order=order)
    assert_same(train(family, plan=plan, transport=transport), alone(family))


def stage(text: str) -> str:
    return f'numerics = "shards=8"\n[[stage]]\nworkers = [0]\nassign = [8]\n{text}'


SECOND = "[[stage]]\nworkers = [1]\nassign = [8]\n"


@pytest.mark.parametrize(
    ("family", "text", "said"),
    [
        (
            "mlp",
            stage('[stage.slices]\n"tail.*" = [2]\n'),
            r"the pattern 'tail.\*' of stage 0 matches no layer.*body.0",
        ),
        ("mlp", stage('[stage.slices]\n"head" = [6]\n'), r"6 slices \(6\) of head, which has 5 outputs: use at most 5"),
        ("gpt", stage('[stage.slices]\n"head" = [2]\n'), "head cannot be sliced: its weight is tied"),
        ("cnn", stage('[stage.slices]\n"norm1" = [2]\n'), "norm1 cannot be sliced: a BatchNorm2d is none of Linear"),
        ("mlp", stage(f'{SECOND}first = "tail"\n'), "begins at 'tail', and the model has no such layer"),
        (
            "gpt",
            stage(f'{SECOND}first = "blocks.1"\n{SECOND}first = "blocks.0"\n'),
            "forward reaches blocks.0 before blocks.1",
        ),
        (
            "mlp",
            stage(f'{SECOND}first = "body.3"\n{SECOND}first = "body.5"\n'),
            "stage 1, from body.3 on, has no parameters",
        ),
        (
            "mlp",
            by_hand('["F0.0 F0.1 F0.2 F0.3 B0.0 B0.1 B0.2", "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 F1.3 B1.3"]'),
            "worker 0.*B0.3",
        ),
        (
            "mlp",
            by_hand('["F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3", "F1.0 F1.1 B1.0 B1.1 F1.2 B1.2 F1.3 B1.3"]'),
            "(?s)worker 0.*worker 1",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(family: str, text: str, said: str, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(Refused, match=said):
        train(family, plan=str(file))


def test_workers_and_a_plan_that_names_them_are_one_too_many(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(stage(""))
    with pytest.raises(Refused, match="leave --workers and --assign out"):
        train("mlp", plan=str(file), workers=2)


def test_further_workers_of_a_pipeline_replicate_a_stage(train: Train) -> None:
    report = train("resnet", plan="pipeline", workers=7, transport="threads")
    assert report.workers == 7
    assert report.plan.count("[[stage]]") == 5
    assert report.digest == train("resnet", workers=1).digest

"""A codec is numerics: it changes the numbers, and who crosses an edge of the tree does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

import samestep
from samestep.errors import Refused
from samestep.launch.launcher import Launcher
from samestep.report import Report

JOBS = Path(__file__).parent / "jobs" / "grids.py"
CODECS = ("bfloat16@0,1,2", "int8@2", "topk:0.1@1,2", "powersgd:2@0,1,2")
HOSTS = ((2, 2), (1, 2, 1), (1, 1), (1, 3), (2, 1, 2, 1))
Train = Callable[..., Report]


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Train:
    def run(family: str, **options: object) -> Report:
        return samestep.train(f"{JOBS}:{family}", launcher=launcher, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> Train:
    known: dict[tuple[str, ...], Report] = {}

    def run(family: str, codec: str, plan: str = "data") -> Report:
        if (family, codec, plan) not in known:
            known[family, codec, plan] = train(family, codec=codec, plan=plan, workers=1)
        return known[family, codec, plan]

    return run


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("family", ["cnn", "gpt"])
def test_one_digest_with_a_codec_whoever_computes(family: str, codec: str, train: Train, alone: Train) -> None:
    """The GPT has a tied head and clipping, the CNN BatchNorm and a short last batch."""
    expected = alone(family, codec)
    assert expected.digest != alone(family, "none").digest
    layouts = [{"workers": 2}, {"workers": 3}]
    layouts += [{"workers": sum(hosts), "hosts": hosts, "transport": "threads"} for hosts in HOSTS]
    for layout in layouts:
        found = train(family, codec=codec, **layout)
        assert (found.digest, found.losses) == (expected.digest, expected.losses), layout


@pytest.mark.parametrize("plan", ["hybrid", "pipeline"])
def test_a_codec_goes_with_slices_and_stages(plan: str, train: Train, alone: Train) -> None:
    for hosts in ((2, 2), (1, 2, 1)):
        found = train("gpt", codec="int8@1", plan=plan, workers=4, hosts=hosts, transport="threads")
        assert found.digest == alone("gpt", "int8@1", plan).digest


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("first", [{"workers": 1}, {"workers": 4, "hosts": (2, 2), "transport": "threads"}])
def test_what_an_edge_remembers_goes_on_with_whoever_crosses_it(
    codec: str, first: dict[str, object], train: Train, alone: Train, tmp_path: Path
) -> None:
    train("gpt", codec=codec, checkpoint=tmp_path, steps=2, **first)
    second = {"workers": 4, "hosts": (1, 2, 1), "transport": "threads"}
    assert train("gpt", codec=codec, checkpoint=tmp_path, resume=True, **second).digest == alone("gpt", codec).digest
    again = train("gpt", codec=codec, checkpoint=tmp_path, resume=True, workers=3)
    assert again.digest == alone("gpt", codec).digest, "no step is left to do: the state is the checkpoint's"


def test_a_codec_sends_fewer_bytes(train: Train) -> None:
    def wired(codec: str) -> int:
        report = train("gpt", codec=codec, workers=2, hosts=(1, 1), transport="threads")
        return sum(times.wired for times in report.times)

    assert wired("bfloat16@2") < 0.7 * wired("none")
    assert wired("int8@2") < 0.5 * wired("none")


def test_a_codec_that_would_do_nothing_is_refused(train: Train) -> None:
    with pytest.raises(Refused, match="edges of level 3"):
        train("mlp", codec="int8@3", workers=1)
    with pytest.raises(Refused, match="--codec has the codec 'zip'"):
        train("mlp", codec="zip@1", workers=1)


def test_another_codec_does_not_go_on_from_a_checkpoint(train: Train, tmp_path: Path) -> None:
    train("mlp", codec="int8@1", workers=1, steps=2, checkpoint=tmp_path)
    with pytest.raises(Refused, match=r"codec=int8:256@1.*codec=none"):
        train("mlp", workers=1, checkpoint=tmp_path, resume=True)

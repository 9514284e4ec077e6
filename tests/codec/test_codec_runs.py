"""A codec is numerics: it changes the numbers, and who crosses an edge of the tree does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairwise import crossed, in_turn
from samestep.errors import Refused
from samestep.job.report import Report
from thread_hosts import LAYOUTS, on

CODECS = ("bfloat16@0,1,2", "int8@2", "topk:0.1@1,2", "powersgd:2@0,1,2")
Train = Callable[..., Report]


@pytest.mark.parametrize(
    ("family", "codec", "layout"),
    crossed(
        ["cnn", "gpt"],
        CODECS,
        [{"workers": 2}, {"workers": 3}, *(on(*hosts) for hosts in LAYOUTS)],
        traits=lambda family, codec, layout: (family, codec, layout["workers"] > 3, len(layout.get("hosts", ()))),
    ),
    ids=str,
)
def test_one_digest_with_a_codec_whoever_computes(
    family: str, codec: str, layout: dict[str, Any], train: Train, alone: Train
) -> None:
    """The GPT has a tied head and clipping, the CNN BatchNorm and a short last batch."""
    expected = alone(family, codec=codec)
    assert expected.digest != alone(family, codec="none").digest
    found = train(family, codec=codec, **layout)
    assert (found.digest, found.losses) == (expected.digest, expected.losses)


@pytest.mark.parametrize("plan", ["hybrid", "pipeline"])
def test_a_codec_goes_with_slices_and_stages(plan: str, train: Train, alone: Train) -> None:
    for hosts in ((2, 2), (1, 2, 1)):
        found = train("gpt", codec="int8@1", plan=plan, **on(*hosts))
        assert found.digest == alone("gpt", codec="int8@1", plan=plan).digest


@pytest.mark.parametrize(("codec", "first"), in_turn(CODECS, [{"workers": 1}, on(2, 2)]), ids=str)
def test_what_an_edge_remembers_goes_on_with_whoever_crosses_it(
    codec: str, first: dict[str, object], train: Train, alone: Train, tmp_path: Path
) -> None:
    train("gpt", codec=codec, checkpoint=tmp_path, steps=2, **first)
    expected = alone("gpt", codec=codec).digest
    assert train("gpt", codec=codec, checkpoint=tmp_path, resume=True, **on(1, 2, 1)).digest == expected
    again = train("gpt", codec=codec, checkpoint=tmp_path, resume=True, workers=3)
    assert again.digest == expected, "no step is left to do: the state is the checkpoint's"


def test_a_codec_sends_fewer_bytes(train: Train) -> None:
    def wired(codec: str) -> int:
        report = train("gpt", codec=codec, **on(1, 1))
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

"""Hugging Face models, unmodified, cut into stages and slices: the same bits as uncut, or as on one worker."""

from pathlib import Path

import pytest

import samestep
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[1] / "jobs" / "hugging_face.py"
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("family", ["gpt2", "bert", "vit", "llama"])
def test_stages_leave_the_bits_and_slices_have_one_digest(family: str, launcher: Launcher) -> None:
    def digest(**options: object) -> str:
        return samestep.train(f"{JOBS}:{family}", launcher=launcher, **options).digest  # type: ignore[arg-type]

    whole = digest(workers=1)
    assert digest(plan="pipeline", workers=3) == whole
    sliced = digest(plan="slices", workers=1)
    assert digest(plan="slices", workers=2) == sliced != whole


def test_a_cache_that_is_handed_from_block_to_block_crosses_a_cut(launcher: Launcher) -> None:
    whole = samestep.train(f"{JOBS}:with_cache", launcher=launcher, plan="data", workers=1)
    assert samestep.train(f"{JOBS}:with_cache", launcher=launcher, plan="pipeline", workers=2).digest == whole.digest

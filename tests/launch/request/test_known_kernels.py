from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from samestep.errors import PlanRefused
from samestep.launch.request import known_kernels as keeping
from samestep.launch.request.known_kernels import KnownKernels, check_promises, known_kernels, untried_torch
from samestep.numerics.kernel_fingerprint import kernel_hashes
from samestep.numerics.kernel_promises import PROMISES


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known_kernels.cache_clear()
    yield
    known_kernels.cache_clear()


def test_it_is_kept_in_the_cache_under_all_that_it_may_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known_kernels("cpu")
    (file,) = (tmp_path / "samestep").iterdir()
    known_kernels.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(keeping, "kernel_hashes", lambda: pytest.fail("it is kept"))
        assert known_kernels("cpu") == first
    with monkeypatch.context() as patched:
        patched.setenv("MKL_CBWR", "COMPATIBLE")
        known_kernels.cache_clear()
        known_kernels("cpu")
        assert len(list((tmp_path / "samestep").iterdir())) == 2
    file.write_text("[")
    known_kernels.cache_clear()
    assert known_kernels("cpu") == first, "a damaged file is computed again"


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "samestep").write_text("a file")
    assert known_kernels("cpu").hashes == kernel_hashes()


def test_kernels_that_break_a_promise_are_refused_by_it() -> None:
    known = KnownKernels({"products": "ab"})
    check_promises(known)
    with pytest.raises(PlanRefused, match=r"does not keep .*: a kernel repeats its bits[.]"):
        check_promises(replace(known, broken=("a kernel repeats its bits",)))


@pytest.mark.parametrize(
    ("version", "is_tried"),
    [("2.12.0", True), ("2.13.0+cpu", True), ("2.14.1", True), ("2.15.0", False), ("3.0.0a1", False), ("odd", False)],
)
def test_a_torch_that_was_not_tried_draws_a_warning(version: str, is_tried: bool) -> None:
    assert (untried_torch(version) is None) == is_tried
    assert is_tried or str(len(PROMISES)) in str(untried_torch(version))

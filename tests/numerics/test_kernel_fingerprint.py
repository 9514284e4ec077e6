import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from samestep.launch.request import known_kernels as keeping
from samestep.launch.request.known_kernels import known_kernels
from samestep.numerics import kernel_fingerprint
from samestep.numerics.kernel_fingerprint import KINDS, kernel_hashes
from samestep.numerics.numerics import differing_kinds, fingerprint_of

PROGRAM = """
import json, torch
from samestep.numerics.kernel_fingerprint import kernel_hashes
print(json.dumps([kernel_hashes(), torch.get_num_threads()]))
"""


def in_a_process(**variables: str) -> list[object]:
    import json

    env = {**os.environ, **variables}
    found: list[object] = json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True))
    return found


def test_one_machine_has_one_fingerprint_whatever_was_computed_before() -> None:
    first = kernel_hashes()
    torch.randn(300, 300) @ torch.randn(300, 300)
    assert all(kernel_hashes() == first for _ in range(5))
    assert set(first) == set(KINDS)
    assert len(set(first.values())) == len(KINDS)


def test_neither_threads_nor_generators_matter_and_both_stay() -> None:
    here = kernel_hashes()
    assert in_a_process(OMP_NUM_THREADS="2") == [here, 2]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    kernel_hashes()
    assert torch.equal(torch.get_rng_state(), before)


def test_other_instructions_are_seen_by_kind() -> None:
    """A processor with fewer instructions, as far as the libraries let themselves be told."""
    here = kernel_hashes()
    (there, _) = in_a_process(ATEN_CPU_CAPABILITY="default")
    assert isinstance(there, dict)
    kinds = differing_kinds(here, there)
    assert {"functions", "sums"} <= set(kinds)
    assert "bfloat16 products" not in kinds or len(kinds) > 3
    assert fingerprint_of(here) != fingerprint_of(there)


def test_no_thread_is_started_by_it() -> None:
    """The process that is forked later may have one only."""
    count = "import os; from samestep.numerics.kernel_fingerprint import kernel_hashes; kernel_hashes(); "
    count += "print(len(os.listdir('/proc/self/task')))"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert subprocess.check_output([sys.executable, "-c", count], env=env, text=True).strip() == "1"
    assert threading.active_count() >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_numbers_that_are_finite_and_not_all_alike(kind: str) -> None:
    results = list(KINDS[kind]())
    assert results or kind == "oneDNN's products"
    for result in results:
        assert torch.isfinite(result).all()
        assert result.numel() == 1 or result.float().std() > 0


def test_it_is_kept_in_the_cache_under_all_that_it_may_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known_kernels.cache_clear()
    try:
        first = known_kernels("cpu")
        (file,) = (tmp_path / "samestep").iterdir()
        known_kernels.cache_clear()
        monkeypatch.setattr(keeping, "kernel_hashes", lambda: pytest.fail("it is kept"))
        assert known_kernels("cpu") == first
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
        known_kernels.cache_clear()
        known_kernels("cpu")
        assert len(list((tmp_path / "samestep").iterdir())) == 2
        file.write_text("[")
        monkeypatch.delenv("MKL_CBWR")
        known_kernels.cache_clear()
        assert known_kernels("cpu") == first, "a damaged file is computed again"
    finally:
        known_kernels.cache_clear()


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samestep").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known_kernels.cache_clear()
    try:
        assert known_kernels("cpu") == kernel_hashes()
    finally:
        known_kernels.cache_clear()


def test_onednns_linear_is_the_product() -> None:
    """The private operator of torch that `system/onednn.py` names."""
    if kernel_fingerprint.LINEAR is None:
        pytest.skip("this torch is built without oneDNN")
    x, weight, bias = torch.randn(9, 33), torch.randn(17, 33), torch.randn(17)
    found = kernel_fingerprint.LINEAR(x, weight, bias, "none", [], "")
    torch.testing.assert_close(found, F.linear(x, weight, bias))

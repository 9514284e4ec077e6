import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from samestep.numerics.kernel_fingerprint import KINDS, kernel_hashes
from samestep.numerics.numerics import differing_kinds, fingerprint_of

PROGRAM = """
import json, torch
from samestep.numerics.kernel_fingerprint import kernel_hashes
print(json.dumps([kernel_hashes(), torch.get_num_threads()]))
"""


def in_a_process(**variables: str) -> list[Any]:
    env = {**os.environ, **variables}
    found: list[Any] = json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True))
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_numbers_that_are_finite_and_not_all_alike(kind: str) -> None:
    results = list(KINDS[kind]())
    assert results or kind == "oneDNN's products"
    for result in results:
        assert torch.isfinite(result).all()
        assert result.numel() == 1 or result.float().std() > 0

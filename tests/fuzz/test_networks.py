"""Made-up networks under cut plans: right, or refused; never other numbers, never an exception that is not ours.

`python tests/fuzz/run.py --networks 2000` goes through as many as one has time for.
"""

import pytest

from fuzz.compared import compared
from fuzz.made_up import designed

SEEDS = range(3000, 3012)

pytestmark = pytest.mark.usefixtures("one_thread")  # workers are threads of this process


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_network_is_right_or_refused(seed: int) -> None:
    found = compared(seed, thoroughly=False)
    assert not found.failures, designed(seed).said


def test_networks_are_drawn_from_their_seeds_alone() -> None:
    assert designed(7).said == designed(7).said
    assert len({str(designed(seed).said) for seed in range(20)}) == 20

"""The bug zoo, while a job runs: audits and the ledger must name each bug, its step and its worker."""

import re
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.errors import TrainingFailed
from samestep.launch.run.launcher import Launcher

FOLDER = Path(__file__).parent
FLIPPING = FOLDER.parent / "jobs" / "flipping.py"
TWO, THREE = {"workers": 2}, {"workers": 3}
HOSTS = {"workers": 2, "transport": "threads", "hosts": (1, 1)}

BUGS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # job, settings, workers, what the message must say
    ("audit_jobs.py:statistics_of_its_own", {}, THREE, r"after step 2: buffer 1.running_mean differs.*worker 1:"),
    ("own_jobs.py:other_rate", {}, TWO, r"after step 2: optimizer 0 lr differs .*culprit is worker 1:"),
    ("own_jobs.py:other_rate", {}, HOSTS, r"after step 2: optimizer 0 lr differs .*culprit is worker 1:"),
    ("audit_jobs.py:another_shuffle", {}, TWO, r"epoch 0 .*rows came more than once: .*workers 0, 1.*were not used"),
    ("audit_jobs.py:batches_of", {"change": "twice"}, TWO, r"epoch 0 .* 8 rows came .*workers 1, 1.* 8 rows were not"),
    ("audit_jobs.py:batches_of", {"change": "lost"}, TWO, r"epoch 0 .* rows were not used"),
    ("audit_jobs.py:last_rows_padded", {}, TWO, r"epoch 0 did not use each of the 60 rows .* 4 rows came more than"),
    (f"{FLIPPING}:job", {"kind": "state"}, TWO, r"in step 3: optimizer state .* \(bit 0 of .*culprit is worker 1,"),
]


@pytest.mark.parametrize(
    ("where", "settings", "workers", "says"), BUGS, ids=[f"{b[0].rpartition(':')[2]} {b[1]} {len(b[2])}" for b in BUGS]
)
def test_a_bug_is_named(
    where: str, settings: dict[str, Any], workers: dict[str, Any], says: str, launcher: Launcher
) -> None:
    with pytest.raises(TrainingFailed) as caught:
        samestep.train(f"{FOLDER / where}", settings=settings, plan="data", audit=1, launcher=launcher, **workers)
    said = str(caught.value).replace("audit after step 1:", "audit after step 2:")
    assert "Disagreement" in said
    assert re.search(says, said), said


@pytest.mark.parametrize("workers", [TWO, THREE, HOSTS])
def test_the_same_jobs_without_a_bug_raise_no_alarm(workers: dict[str, Any], launcher: Launcher) -> None:
    report = samestep.train(f"{FOLDER / 'own_jobs.py'}:right", plan="data", audit=1, launcher=launcher, **workers)
    assert report.audits == 4
    assert report.epochs_proven == 1

"""Audits and the ledger, in whole runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import samestep
from commands import free_port
from samestep.audit.memory_watch import WatchedTensor, change, regions, single_bits
from samestep.cli import main
from samestep.errors import Refused, TrainingFailed
from samestep.launch.run.launcher import Launcher
from thread_hosts import LAYOUTS, on

FOLDER = Path(__file__).parents[1] / "jobs"
JOB = f"{FOLDER / 'flipping.py'}:job"
GRIDS = FOLDER / "grids.py"
HOSTS: dict[str, Any] = {"workers": 2, "transport": "threads", "hosts": (1, 1)}


def trained(launcher: Launcher, **options: Any) -> samestep.job.report.Report:
    return samestep.train(JOB, **{"plan": "data", "audit": 1, "launcher": launcher, **options})


def caught(launcher: Launcher, settings: dict[str, Any], **options: Any) -> str:
    with pytest.raises(TrainingFailed, match="Disagreement") as error:
        trained(launcher, settings={"steps": 6, **settings}, **options)
    return str(error.value)


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("kind", ["parameter", "state", "buffer", "frozen"])
@pytest.mark.parametrize(("element", "bit"), [(5, 0), (11, 31)])
def test_a_flipped_bit_is_found_and_its_worker_named(
    kind: str, worker: int, element: int, bit: int, launcher: Launcher, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    settings = {"kind": kind, "worker": worker, "element": element, "bit": bit, "said": str(said), "tensor": 2}
    text = caught(launcher, settings, **HOSTS)
    assert said.read_text() in text
    assert f"culprit is worker {worker}" in text
    assert "audit in step 3" in text


def test_a_flip_before_the_first_update_is_found(launcher: Launcher) -> None:
    assert "in step 0: parameter" in caught(launcher, {"kind": "parameter", "at": 0}, **HOSTS)


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_of_three_hosts_any_copy_is_watched(worker: int, launcher: Launcher) -> None:
    options = {"workers": 3, "transport": "threads", "hosts": (1, 1, 1)}
    text = caught(launcher, {"kind": "parameter", "worker": worker, "tensor": 4}, **options)
    assert f"culprit is worker {worker}, in its own copy" in text


def test_the_one_copy_of_a_host_is_watched_too(launcher: Launcher) -> None:
    text = caught(launcher, {"kind": "parameter", "tensor": 1, "bit": 7, "element": 3}, workers=2)
    assert "in step 3: parameter first.bias (bit 7 of element 3)" in text
    assert "in the memory of host 0, which workers 0, 1 share" in text


def test_what_no_watch_has_seen_the_next_audit_finds(launcher: Launcher) -> None:
    """Large frozen parameters are looked at in audits only."""
    text = caught(launcher, {"kind": "frozen", "at": 1, "bit": 20, "wide": 1024}, audit=4, **HOSTS)
    assert "after step 4: frozen parameter frozen.weight differs" in text
    assert "culprit is worker 1" in text


UNWATCHED = {"watched": False, "at": 2, "element": 3, "bit": 20, "tensor": 1, "steps": 8}


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("kind", ["parameter", "state"])
def test_of_two_copies_the_steps_done_again_tell_the_wrong_one(
    kind: str, worker: int, adam: bool, launcher: Launcher
) -> None:
    text = caught(launcher, {**UNWATCHED, "kind": kind, "worker": worker, "adam": adam}, audit=4, **HOSTS)
    assert "audit after step 4" in text
    assert f"culprit is worker {worker}: " in text
    assert "all steps since the start again" in text


@pytest.mark.parametrize("hosts", [(2, 2), (1, 3)])
def test_steps_are_done_again_on_each_host(hosts: tuple[int, ...], launcher: Launcher) -> None:
    text = caught(launcher, {**UNWATCHED, "kind": "state"}, audit=4, shards=6, **on(*hosts))
    assert "culprit is worker 1: " in text
    assert "optimizer state momentum_buffer" in text


@pytest.mark.parametrize("worker", [0, 1])
def test_steps_are_done_again_for_each_of_two_workers_of_one_host(worker: int, launcher: Launcher) -> None:
    """A constant that each of them has."""
    text = caught(launcher, {**UNWATCHED, "kind": "buffer", "tensor": 0, "worker": worker}, audit=4, workers=2)
    assert "buffer mask differs between worker 0 and worker 1" in text
    assert f"culprit is worker {worker}: " in text
    assert f"worker {1 - worker} by 0 in all" in text


@pytest.mark.parametrize("why", [{"made": False}, {"longest": 0.0}])
def test_steps_that_nobody_can_do_again_name_nobody(why: dict[str, Any], launcher: Launcher) -> None:
    text = caught(launcher, {**UNWATCHED, "kind": "parameter", **why}, audit=4, **HOSTS)
    assert "As many are on either side: a third host" in text
    assert "culprit" not in text


def test_steps_on_batches_of_ones_own_are_not_done_again() -> None:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(FOLDER.parent / "scripts" / "flipped_constant.py")]
    started = [
        subprocess.Popen(script, env={**os.environ, **world, "RANK": rank}, text=True, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    texts = [process.communicate(timeout=240)[1] for process in started]
    assert all(process.returncode for process in started)
    for text in texts:
        assert "buffer mask differs between worker 0 and worker 1" in text
        assert "As many are on either side: a third host" in text


def test_steps_are_done_again_from_a_checkpoint(launcher: Launcher, tmp_path: Path) -> None:
    quiet = {"kind": "none", "steps": 5}
    trained(launcher, settings=quiet, checkpoint=tmp_path, **HOSTS)
    settings = {**UNWATCHED, "kind": "parameter", "at": 9, "steps": 12}
    text = caught(launcher, settings, audit=4, checkpoint=tmp_path, resume=True, **HOSTS)
    assert "culprit is worker 1: " in text
    assert "all steps since the checkpoint after step 5 again" in text


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_hosts_raise_no_alarm_and_bits_stay(hosts: tuple[int, ...], launcher: Launcher) -> None:
    settings = {"steps": 6}
    report = trained(launcher, settings=settings, shards=6, **on(*hosts))
    assert (report.audits, report.epochs_proven) == (6, 1)
    assert report.digest == trained(launcher, settings=settings, shards=6, workers=1).digest


@pytest.mark.parametrize("plan", ["data", "pipeline", "slices", "hybrid"])
@pytest.mark.parametrize("family", ["mlp", "gpt", "cnn"])
def test_plans_raise_no_alarm(family: str, plan: str, launcher: Launcher) -> None:
    try:
        without = samestep.train(f"{GRIDS}:{family}", plan=plan, workers=2, audit=0, launcher=launcher)
    except Refused:
        pytest.skip("the family cannot be cut so")
    report = samestep.train(f"{GRIDS}:{family}", plan=plan, workers=2, audit=2, launcher=launcher)
    assert report.digest == without.digest
    assert report.audits == report.steps // 2
    assert (without.audits, without.epochs_proven) == (0, None)


def test_one_worker_keeps_a_ledger_and_has_nobody_to_compare_with(launcher: Launcher) -> None:
    report = trained(launcher, settings={"steps": 8}, workers=1)
    assert (report.audits, report.epochs_proven) == (0, 2)


def test_the_ledger_goes_on_in_the_middle_of_an_epoch(launcher: Launcher, tmp_path: Path) -> None:
    trained(launcher, settings={"steps": 6}, workers=2, checkpoint=tmp_path)
    report = trained(launcher, settings={"steps": 12}, workers=3, checkpoint=tmp_path, resume=True)
    assert report.epochs_proven == 2, "the second epoch, of which half was left, and the third"
    assert report.digest == trained(launcher, settings={"steps": 12}, workers=1).digest


def test_the_summary_says_it() -> None:
    ran = CliRunner().invoke(
        main, ["train", JOB, "--plan", "data", "--workers", "2", "--set", "steps=8", "--audit", "4", "--json"]
    )
    assert ran.exit_code == 0, ran.output
    assert "audits: 2, ledger: 2 epochs, every row once" in ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (report["audits"], report["epochs_proven"]) == (2, 2)


def test_below_zero_is_refused(launcher: Launcher) -> None:
    with pytest.raises(Refused, match=r"--audit -1: it must be a whole number of at least 0"):
        trained(launcher, workers=2, audit=-1)


@pytest.mark.parametrize("bit", range(64))
def test_the_flipped_bit_is_named_or_the_tensor_at_least(bit: int) -> None:
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    [region] = regions([WatchedTensor("x", x), WatchedTensor("y", y, start=100)])
    kept = region.blocks()
    y.view(torch.int64)[3] ^= (1 << bit) - (1 << 64 if bit == 63 else 0)
    found = change(region, kept, region.blocks())
    assert found.name == "y"
    assert (found.first, found.last) == (100, 106)
    assert found.element in (103, None)
    assert bit > 50 or (found.element, found.bit) == (103, bit)


def test_two_flips_in_a_block_are_no_single_bit() -> None:
    assert single_bits(12345678987654321, 32) == []

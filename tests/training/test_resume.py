"""A run that resumes is the run that was stopped: a job that makes or does anything else is refused, or is meant."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.errors import CheckpointRefused, Refused
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher
from samestep.launch.run.outcome import Outcome

JOB = """
import functools
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
import torch.nn.functional as F
import samestep

WARM = 4.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop, self.norm, self.b = nn.Linear(6, 16), nn.Dropout(0.2), nn.BatchNorm1d(16), nn.Linear(16, 3)
    def forward(self, x):
        return self.b(self.drop(F.relu(self.norm(self.a(x))))) * 1.0

def loss(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)

class Rows(torch.utils.data.Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(64, 6, generator=g), torch.randint(0, 3, (64,), generator=g)
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(6), self.y[i]

def job(lr: float = 0.1, steps: int = 8):
    floor = 0.05
    return samestep.Job(
        model=Net, loss=loss, data=Rows(), batch_size=16, shards=4, steps=steps,
        optimizer=lambda params: SGD([{"params": params[:2], "momentum": 0.9}, {"params": params[2:]}], lr),
        scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: max(floor, min(1.0, (step + 1) / WARM))),
    )
"""

CHANGES: dict[str, tuple[str, str, str, list[str]]] = {
    "a smoothed loss": ("label_smoothing=0.1", "label_smoothing=0.0", "loss", ["loss on the recorded shard"]),
    "a scaled forward": ("* 1.0", "* 1.01", "loss", ["loss on the recorded shard"]),
    "a gradient": ("* 1.0", "* 1.0 + 0 * (x.sum() * self.b.bias).sum()", "", []),
    "a scaled gradient": ("return self.b(", "x = x.clone().requires_grad_(); return self.b(", "", []),
    "a detached branch": ("self.norm(self.a(x))", "self.norm(self.a(x).detach())", "loss", ["gradient of a."]),
    "an activation": ("F.relu", "F.gelu", "loss", ["loss on the recorded shard"]),
    "a dropout rate": ("Dropout(0.2)", "Dropout(0.3)", "model", ["module drop", "p=0.2", "p=0.3"]),
    "a momentum of statistics": ("BatchNorm1d(16)", "BatchNorm1d(16, momentum=0.2)", "model", ["module norm", "0.2"]),
    "a rate": ("lr: float = 0.1", "lr: float = 0.2", "lr", ["lr of parameter group 0"]),
    "a momentum": ('"momentum": 0.9', '"momentum": 0.8', "momentum", ["momentum of parameter group 0", "0.9", "0.8"]),
    "the schedule's closure": ("floor = 0.05", "floor = 0.5", "schedule", ["floor", "0.05", "0.5"]),
    "the schedule's global": ("WARM = 4.0", "WARM = 3.0", "schedule", ["WARM", "4.0", "3.0"]),
    "the schedule's code": ("(step + 1)", "(step + 2)", "schedule", ["schedule's lr_lambdas"]),
    "other rows": ("manual_seed(3)", "manual_seed(4)", "data", ["rows with the hash"]),
    "other noise": ("0.1 * torch.randn", "0.2 * torch.randn", "data", ["rows with the hash"]),
    "another type": ("self.y[i]", "self.y[i].int().long() * 1", "", []),
    "a column more": ("self.y[i]", "self.y[i], i", "data", ["data is"]),
    "a name of a class": ("Net", "Network", "", []),
    "a comment": ("WARM = 4.0", "WARM = 4.0  # steps", "", []),
    "clipping": ("steps=steps", "steps=steps, clip_grad_norm=1.0", "clip_grad_norm", ["clip_grad_norm is None"]),
    "the order": ("steps=steps", "steps=steps, shuffle=False", "shuffle", ["shuffle is True"]),
}
"""What is changed in the file: before, after, the name that `--change` wants, words of the refusal; none if told."""


class Warnings:
    """Warnings of a run, and what it said of going on."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def see(self, event: dict[str, Any], outcome: Outcome) -> None:
        if event["event"] == "warning":
            self.texts.append(event["text"])


Resume = Callable[..., tuple[Report, list[str]]]


@pytest.fixture(scope="module")
def kept(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "written.py").write_text(JOB)
    samestep.train(f"{folder / 'written.py'}:job", workers=1, steps=3, checkpoint=folder / "kept", launcher=launcher)
    return folder / "kept"


@pytest.fixture
def resume(launcher: Launcher, kept: Path, tmp_path: Path) -> Resume:
    def run(before: str = "", after: str = "", **options: Any) -> tuple[Report, list[str]]:
        root = tmp_path / "kept"
        if not root.exists():
            shutil.copytree(kept, root)
        assert before in JOB
        (tmp_path / "read.py").write_text(JOB.replace(before, after) if before else JOB)
        warnings = Warnings()
        options = {"workers": 2, "steps": 5, **options}
        report = samestep.train(
            f"{tmp_path / 'read.py'}:job", checkpoint=root, resume=True, launcher=launcher, watcher=warnings, **options
        )
        return report, warnings.texts

    return run


def test_the_same_job_goes_on_without_a_word(resume: Resume) -> None:
    _, warnings = resume()
    assert warnings == []


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_job_makes_or_does_otherwise_is_refused_until_it_is_meant(resume: Resume, what: str) -> None:
    before, after, name, words = CHANGES[what]
    if not words:
        digest, warnings = resume(before, after)
        assert digest.steps == 5
        assert any("the job's file has changed" in text for text in warnings)
        return
    with pytest.raises(Refused, match="is of another job") as refused:
        resume(before, after)
    message = str(refused.value)
    for word in words:
        assert word in message
    (asked,) = re.findall(r"add --change (\S+)", message)
    assert name in asked.split(",")
    if what != "a column more":
        report, _ = resume(before, after, change=asked.split(","))
        assert report.steps == 5


def stored(root: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"step-{step:08d}" / "checkpoint.json").read_text())
    return found


def test_what_is_meant_counts_and_the_rest_is_the_checkpoints(resume: Resume, tmp_path: Path) -> None:
    resume(settings={"lr": 0.3}, change=("lr",), steps=5)
    groups = stored(tmp_path / "kept", 5)["optimizer"]
    assert [group["initial_lr"] for group in groups] == [0.3, 0.3]
    assert groups[0]["lr"] == 0.3  # the warm-up is over
    assert [group["momentum"] for group in groups] == [0.9, 0]
    assert stored(tmp_path / "kept", 5)["scheduler"]["last_epoch"] == 5


def test_a_setting_that_changes_nothing_is_told(resume: Resume) -> None:
    _, warnings = resume(
        "lr: float = 0.1, steps: int = 8", "lr: float = 0.1, steps: int = 8, unused: int = 1", settings={"unused": 2}
    )
    assert any("setting unused is not given, this job's is 2" in text for text in warnings)


def test_a_name_that_nothing_has_is_refused(resume: Resume) -> None:
    with pytest.raises(Refused, match=r"--change rate: the job has nothing of that name; it takes .*\blr\b"):
        resume(change="rate")


def test_a_change_without_a_checkpoint_to_go_on_from_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(JOB)
    with pytest.raises(CheckpointRefused, match=r"--change lr says what may differ.*add --resume"):
        samestep.train(f"{tmp_path / 'read.py'}:job", checkpoint=tmp_path / "kept", change="lr", launcher=launcher)


def test_what_will_be_refused_does_not_go_on(kept: Path, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    shutil.copytree(kept, root)
    (tmp_path / "read.py").write_text(JOB)
    command = [sys.executable, "-m", "samestep", "train", "read.py", "--checkpoint", "kept", "--resume", "--steps", "5"]
    refused = subprocess.run([*command, "--set", "lr=0.5"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "going on" not in refused.stderr
    assert "its lr of parameter group 0 is" in refused.stderr
    assert "its setting lr is 0.1, this job's is 0.5" in refused.stderr
    gone_on = subprocess.run(
        [*command, "--set", "lr=0.5", "--change", "lr"], cwd=tmp_path, capture_output=True, text=True
    )
    assert gone_on.returncode == 0, gone_on.stderr
    assert "going on after step 3" in gone_on.stderr


def altered(root: Path, **fields: Any) -> None:
    """Change a checkpoint's description, and its hash with it."""
    path = root / "step-00000003" / "checkpoint.json"
    found = json.loads(path.read_text()) | fields
    found = {name: value for name, value in found.items() if name != "sha256" and value is not None}
    text = json.dumps(found, sort_keys=True).encode()
    path.write_text(json.dumps({**found, "sha256": hashlib.sha256(text).hexdigest()}))


def test_a_state_that_is_not_the_recorded_one_is_refused(resume: Resume, kept: Path, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    shutil.copytree(kept, root)
    altered(root, digest="ab" * 32)
    with pytest.raises(Refused, match="was written with the state abababababababab, and what was read from it"):
        resume()


def test_a_checkpoint_of_the_format_before_goes_on_and_says_what_was_not_compared(
    resume: Resume, kept: Path, tmp_path: Path
) -> None:
    root = tmp_path / "kept"
    shutil.copytree(kept, root)
    altered(root, format=1, made=None, recorded=None)
    _, warnings = resume()
    assert any("format 1" in text and "could not be compared" in text for text in warnings)


STEERED = (
    JOB.replace("WARM = 4.0", "WARM = [4.0]")
    .replace("/ WARM", "/ WARM[0]")
    .replace("steps=steps,", "steps=steps, callbacks=[lambda step, loss, metrics: WARM.__setitem__(0, 2.0)],")
)


def test_a_schedule_that_reads_a_value_which_the_run_changes_is_refused_at_the_save(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "steered.py").write_text(STEERED)
    with pytest.raises(Refused, match=r"the schedule reads WARM in lr_lambdas\[0\], which was \[4.0\].*is \[2.0\] now"):
        samestep.train(
            f"{tmp_path / 'steered.py'}:job", workers=1, steps=3, checkpoint=tmp_path / "kept", launcher=launcher
        )


def test_a_schedule_that_sees_much_data_is_not_slowed_by_it(launcher: Launcher, tmp_path: Path) -> None:
    text = JOB.replace("WARM = 4.0", "DATA = [torch.zeros(1 << 22), list(range(1 << 20))]; WARM = 4.0")
    (tmp_path / "seeing.py").write_text(text.replace("max(floor,", "max(floor + 0 * len(DATA),"))
    samestep.train(f"{tmp_path / 'seeing.py'}:job", workers=1, steps=1, checkpoint=tmp_path / "kept", launcher=launcher)
    stored_reads = stored(tmp_path / "kept", 1)["made"]["schedule"]["reads"]
    assert {name.split(" ")[0] for name in stored_reads} == {"WARM", "floor"}

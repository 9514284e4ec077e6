"""Nothing is found at the end: what cannot be written is refused right after the first update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import samestep
from samestep.errors import Refused
from samestep.launch.run.launcher import Launcher
from samestep.training.rehearsal import Ends, check_writable

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "endings.py"

REFUSED = {
    "function": r"'rule' in parameter group 0 of the optimizer SGD holds a function",
    "odd state": r"Odd keeps 'history' as a list",
    "extra state": r"0\._extra_state in the model's state_dict is a dict, which a file of weights cannot hold",
    "complex128": r"first\.\w+ in the model's state_dict is torch\.complex128, which a file of tensors",
    "stateless": r"Job\.scheduler made a Stateless without state_dict.*load_state_dict",
    "global norm": r"GlobalNorm looks at several parameters together: .*--workers 1",
    "one step size": r"OneStepSize looks at several parameters together: .*--workers 1",
}


def train(case: str, launcher: Launcher, **options: Any) -> samestep.Report:
    return samestep.train(f"{JOBS}:job", settings={"case": case}, launcher=launcher, **{"workers": 2, **options})


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_end_cannot_write_is_refused_in_the_beginning(case: str, launcher: Launcher) -> None:
    with pytest.raises(Refused, match=REFUSED[case]):
        train(case, launcher)


@pytest.mark.parametrize(
    ("option", "path"), [("save", "gone/weights"), ("save", "."), ("checkpoint", "file/checkpoints")]
)
def test_a_path_that_cannot_be_written_is_refused(option: str, path: str, tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Refused, match=rf"--{option} .*(must be a folder|name a folder)"):
        train("nothing", launcher, **{option: str(tmp_path / path)})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("option", "ends"), [("--save", Ends(save="/proc/weights")), ("--checkpoint", Ends(checkpoint="/proc/1/folder"))]
)
def test_so_is_one_that_only_writing_shows(option: str, ends: Ends) -> None:
    with pytest.raises(Refused, match=rf"{option} /proc/.* cannot be written \(.*\): name a"):
        check_writable(ends)


@pytest.mark.parametrize("case", ["complex64", "per parameter"])
def test_what_can_be_written_is_the_same_on_any_number_of_workers(
    case: str, tmp_path: Path, launcher: Launcher
) -> None:
    one, two = (
        train(
            case, launcher, workers=workers, save=str(tmp_path / f"{workers}"), checkpoint=str(tmp_path / f"c{workers}")
        )
        for workers in (1, 2)
    )
    assert one.digest == two.digest
    first, second = (load_file(tmp_path / name) for name in ("1", "2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["global norm", "one step size"])
def test_one_worker_runs_them_whole(case: str, launcher: Launcher) -> None:
    assert train(case, launcher, workers=1).steps == 6


def test_names_in_a_saved_file_are_the_models_own(tmp_path: Path, launcher: Launcher) -> None:
    train("compiled", launcher, save=str(tmp_path / "weights"))
    assert sorted(load_file(tmp_path / "weights")) == ["0.bias", "0.weight", "1.bias", "1.weight"]

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from samestep.errors import CheckpointRefused
from samestep.numerics.numerics import Numerics
from samestep.state.checkpoint import (
    FORMAT,
    KEPT,
    Description,
    check_numerics,
    check_same,
    file_hash,
    finished,
    folder_of,
    publish,
    read_description,
    remove_unfinished,
    temporary_of,
    unfinished_file,
)
from samestep.state.job_traits import not_meant, refuse

NUMERICS = Numerics(shards=8, optimizer="SGD", torch="2.13.0", isa="AVX512")
FINGERPRINT = {"parameters": ["a float32 (3,)", "b float32 (2, 2)"], "batch size": 64, "shuffle": True}


def description(step: int, files: dict[str, str]) -> Description:
    return Description(
        format=FORMAT,
        step=step,
        numerics=NUMERICS.line(),
        digest="ab" * 32,
        fingerprint=FINGERPRINT,
        optimizer=[{"lr": 0.1, "names": ["a", "b"], "betas": [0.9, 0.999]}],
        scheduler={"last_epoch": step},
        cpu="x86_64",
        files=files,
    )


def write(root: Path, step: int, content: bytes = b"weights") -> Path:
    temporary = temporary_of(root, "run")
    temporary.mkdir(parents=True)
    (temporary / "worker-0.safetensors").write_bytes(content)
    files = {"worker-0.safetensors": file_hash(temporary / "worker-0.safetensors")}
    return publish(temporary, description(step, files), root)


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path, 120)
    assert folder == folder_of(tmp_path, 120) == tmp_path / "step-00000120"
    assert read_description(folder) == description(
        120, {"worker-0.safetensors": file_hash(next(folder.glob("*.saf*")))}
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000120"]


def test_a_checkpoint_is_json_and_safetensors_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 3


def test_the_last_few_stay_and_the_order_is_that_of_the_steps(tmp_path: Path) -> None:
    for step in (5, 10, 100, 99_999, 100_000):
        write(tmp_path, step)
    steps = [int(path.name.removeprefix("step-")) for path in finished(tmp_path)]
    assert steps == [100, 99_999, 100_000]
    assert len(steps) == KEPT


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 7, b"first")
    folder = write(tmp_path, 7, b"second")
    assert (folder / "worker-0.safetensors").read_bytes() == b"second"
    read_description(folder)


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    """What a kill in the middle of writing leaves behind is never taken for a checkpoint."""
    write(tmp_path, 7)
    temporary = temporary_of(tmp_path, "killed")
    temporary.mkdir()
    (temporary / "worker-0.safetensors").write_bytes(b"half")
    half_saved = unfinished_file(tmp_path / "model.safetensors", "killed")
    half_saved.write_bytes(b"half")
    assert finished(tmp_path) == [folder_of(tmp_path, 7)]
    remove_unfinished(str(tmp_path), str(tmp_path / "model.safetensors"), "killed")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_another_runs_unfinished_files_are_left_alone(tmp_path: Path) -> None:
    temporary_of(tmp_path, "other").mkdir()
    remove_unfinished(str(tmp_path), str(tmp_path / "model.safetensors"), "mine")
    remove_unfinished(None, None, "mine")
    assert temporary_of(tmp_path, "other").is_dir()


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path: Path) -> None:
    assert finished(tmp_path / "nowhere") == []


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: (folder / "worker-0.safetensors").write_bytes(b"weightt"),
    "a file cut short": lambda folder: (folder / "worker-0.safetensors").write_bytes(b"weig"),
    "a missing file": lambda folder: (folder / "worker-0.safetensors").unlink(),
    "no description": lambda folder: (folder / "checkpoint.json").unlink(),
    "half a description": lambda folder: (folder / "checkpoint.json").write_text('{"format": 1, "step"'),
    "an empty description": lambda folder: (folder / "checkpoint.json").write_text(""),
    "another value": lambda folder: change(folder, '"batch size": 64', '"batch size": 65'),
    "another step": lambda folder: change(folder, '"step": 9', '"step": 8'),
    "no object": lambda folder: (folder / "checkpoint.json").write_text("[1, 2]"),
    "bytes": lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
}


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "checkpoint.json").read_text()
    assert old in text
    (folder / "checkpoint.json").write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_the_one_before(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 5)
    folder = write(tmp_path, 9)
    DAMAGE[damage](folder)
    with pytest.raises(CheckpointRefused, match=r"step-00000009 is damaged: .*go on from step-00000005"):
        read_description(folder)
    read_description(folder_of(tmp_path, 5))


def test_a_damaged_one_without_another_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, 9)
    (folder / "worker-0.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match="there is no older one: start afresh"):
        read_description(folder)


def test_another_format_is_refused_with_both(tmp_path: Path) -> None:
    folder = write(tmp_path, 9)
    change(folder, f'"format": {FORMAT}', '"format": 99')
    with pytest.raises(CheckpointRefused, match=f"has format 99, this samestep reads 1 and {FORMAT}"):
        read_description(folder)


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (
            {"parameters": ["a float32 (3,)", "c float32 (2, 2)"]},
            r"its parameters is b float32 \(2, 2\) \(item 1 of 2\), this job's is c float32 \(2, 2\) \(item 1 of 2\)",
        ),
        ({"parameters": ["a float32 (3,)"]}, r"its parameters is b .*, this job's is 1 items"),
    ],
)
def test_another_jobs_checkpoint_is_refused_by_the_first_difference(here: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointRefused, match=said):
        check_same(description(1, {}), {**FINGERPRINT, **here}, NUMERICS.line(), Path("folder"))
    assert check_same(description(1, {}), FINGERPRINT, NUMERICS.line(), Path("folder")) == ([], [])


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"batch size": 32}, "its batch size is 64, this job's is 32"),
        ({"shuffle": False}, "its shuffle is True, this job's is False"),
        ({"drop_last": True}, "its drop_last is None, this job's is True"),
    ],
)
def test_what_the_state_does_not_depend_on_can_be_meant(here: dict[str, object], said: str) -> None:
    (name,) = here
    found, _ = check_same(description(1, {}), {**FINGERPRINT, **here}, NUMERICS.line(), Path("folder"))
    assert [str(one) for one in found] == [said]
    assert not_meant(found, [name]) == []
    with pytest.raises(CheckpointRefused, match=f"{said}.*--change {name.replace(' ', '_')}"):
        refuse(found, Path("folder"))


def test_the_format_before_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 9)
    fields = json.loads((folder / "checkpoint.json").read_text())
    for name in ("made", "recorded", "sha256"):
        del fields[name]
    fields["format"] = 1
    text = json.dumps({**fields, "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()})
    (folder / "checkpoint.json").write_text(text)
    assert read_description(folder) == replace(read_description(folder), format=1, made=None, recorded=None)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"shards": 4},
        {"threads": 2},
        {"precision": "bfloat16"},
        {"sync_batchnorm": True},
        {"optimizer": "X"},
    ],
    ids=str,
)
def test_other_chosen_numerics_are_refused_with_the_line_that_helps(other: dict[str, object]) -> None:
    (name,) = other
    with pytest.raises(CheckpointRefused, match=f"has the numerics {name}=.*this run has {name}=") as refused:
        check_numerics(description(1, {}), replace(NUMERICS, **other).line(), Path("folder"))  # type: ignore[arg-type]
    assert f'--numerics "{NUMERICS.line()}"' in str(refused.value)


def test_another_environment_is_a_warning() -> None:
    other = replace(NUMERICS, isa="AVX2", torch="2.14.0")
    warnings = check_numerics(description(1, {}), other.line(), Path("folder"))
    assert len(warnings) == 2
    assert "isa=AVX512, this run has isa=AVX2: the bits may differ" in warnings[1]


def test_equal_kernels_under_another_name_draw_no_warning_and_others_one() -> None:
    known = replace(NUMERICS, kernels="ab")
    written = replace(description(1, {}), numerics=known.line())
    assert check_numerics(written, replace(known, isa="AVX2", mkl="AVX2").line(), Path("folder")) == []
    (warning,) = check_numerics(written, replace(known, isa="AVX2", kernels="cd").line(), Path("folder"))
    assert "kernels=ab, this run has kernels=cd: the bits may differ" in warning
    (warning,) = check_numerics(written, replace(known, torch="2.14.1").line(), Path("folder"))
    assert "torch=2.13.0, this run has torch=2.14.1: kernels that were tried give the same bits" in warning
    assert check_numerics(description(1, {}), known.line(), Path("folder")) == [], "from before there were any"

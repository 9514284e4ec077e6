"""Bad input is refused: one message that names both sides and the way out, exit code 2, nothing left behind."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import samestep
from commands import Command
from jobs_bad import refused
from samestep.launch.request.importing import call
from samestep.launch.request.options import JobSource
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).parents[2] / "jobs_bad"
REFUSED = JOBS / "refused.py"

# What each fault of jobs_bad/refused.py must be told: both sides, and the way out.
FAULTS = {
    "too many shards": ["17 shards", "16 rows of a batch", "--shards"],
    "batch too large": ["65 rows", "64 rows", "batch_size to at most 64"],
    "no trainable parameter": ["no trainable parameter", "requires_grad"],
    "loss per row": ["tensor of shape (4,)", "one number", "reduction='mean'", "(sum, weight)"],
    "loss is text": ["the loss is a str", "one number", "mean over the rows"],
    "loss of whole numbers": ["torch.int64", "floats"],
    "loss is detached": ["shard", "does not depend on any trainable parameter", ".detach()"],
    "weight is a tensor": ["(sum, weight)", "tensor of shape (4, 3)", "number of rows"],
    "weight is negative": ["(sum, weight)", "-1", "number of rows"],
    "weight is nan": ["(sum, weight)", "nan", "number of rows"],
    "ignored labels, plain mean": ["batch[1]", "-100", "plain mean", "reduction='sum'"],
    "loss with parameters": ["Linear", "parameters of its own", "part of the model"],
    "loss and forward": ["either loss=", "or forward=", "both given"],
    "neither loss nor forward": ["either loss=", "or forward=", "neither given"],
    "lbfgs": ["LBFGS", "cannot be sharded", "SGD or AdamW"],
    "sparse adam": ["SparseAdam", "dense", "use Adam"],
    "optimizer is an optimizer": ["Job.optimizer is a SGD", "lambda params"],
    "optimizer is none": ["Job.optimizer returned a NoneType", "lambda params"],
    "foreign parameters": ["5 parameters", "1 of which", "not trainable parameters of the model", "list that"],
    "only foreign parameters": ["1 parameters", "1 of which", "list that"],
    "state without plain form": ["parameter group", "object", "pickle"],
    "plateau scheduler": ["ReduceLROnPlateau", "once per optimizer step", "CosineAnnealingLR"],
    "scheduler is none": ["Job.scheduler made a NoneType", "CosineAnnealingLR"],
    "scheduler is a number": ["Job.scheduler is a float", "give a function"],
    "lazy": ["0.weight", "not yet initialised", "runs the model once"],
    "sparse": ["layer 0 (Embedding)", "sparse gradients", "sparse=False"],
    "adds in forward": ["forward changed parameter 0.weight", "make the value a buffer"],
    "scales data in forward": ["forward changed parameter 2.bias", "make the value a buffer"],
    "moves a frozen one in forward": ["forward changed parameter 2.weight", "make the value a buffer"],
    "model makes none": ["Job.model made a NoneType", "torch.nn.Module"],
    "model is text": ["Job.model is a str", "torch.nn.Module"],
    "data is a path": ["Job.data is a str", "by number", "map-style"],
    "data is a stream": ["Job.data is a Stream", "by number", "map-style"],
    "data is a loader": ["Job.data is a DataLoader", "by number", "map-style"],
    "data is a number": ["Job.data is a int", "by number", "map-style"],
    "data is ragged": ["Job.data", "64 and 63 rows", "first dimension"],
    "data holds a list": ["Job.data is a tuple that holds a list", "rows first"],
    "data is a dict of lists": ["Job.data is a dict that holds a list", "rows first"],
    "data has a number": ["Job.data", "without dimensions", "must be the row"],
    "data is empty": ["Job.data has no rows", "how it is loaded"],
    "data set is empty": ["Job.data has no rows", "how it is loaded"],
    "one column": ["(x, y) data", "tuple of 1", "forward="],
    "three columns": ["(x, y) data", "tuple of 3", "forward="],
    "named columns for loss": ["(x, y) data", "dict of 2", "forward="],
    "collate of tensors": ["Job.collate_fn", "made of tensors", "leave collate_fn out"],
    "evaluate is ragged": ["Job.evaluate", "64 and 63 rows"],
    "evaluate is empty": ["Job.evaluate has no rows", "leave it out"],
    "evaluate is a path": ["Job.evaluate is a str", "by number"],
    "metrics is a function": ["Job.metrics is a function", "dict by name"],
    "metric is text": ["Job.metrics['accuracy'] is a str", "(sum, count)"],
    "metric called loss": ["Job.metrics['loss']", "a name of its own"],
    "metric is no pair": ["metric 'best' returned 0.5", "(sum, count)", "Predictions"],
    "metric of tensors": ["metric 'best' returned", "(sum, count)", "Predictions"],
    "predictions make text": ["metric 'auc' returned 'high'", "not a number"],
    "callback is text": ["Job.callbacks", "callback(step, loss, metrics)"],
    "callbacks is a function": ["Job.callbacks", "callback(step, loss, metrics)"],
    "batch size is text": ["Job.batch_size is '16'", "whole number"],
    "batch size is zero": ["Job.batch_size is 0", "at least 1"],
    "batch size is a float": ["Job.batch_size is 16.0", "whole number"],
    "steps is negative": ["Job.steps is -1", "at least 1"],
    "epochs is zero": ["Job.epochs is 0", "at least 1"],
    "seed is text": ["Job.seed is 'zero'", "whole number"],
    "seed is negative": ["Job.seed is -1", "at least 0"],
    "shards is true": ["Job.shards is True", "whole number"],
    "loaders are negative": ["Job.num_loader_workers is -1", "at least 0"],
    "shuffle is text": ["Job.shuffle is 'yes'", "True or False"],
    "precision is unknown": ["Job.precision is 'float8'", "bfloat16"],
    "clip is zero": ["Job.clip_grad_norm is 0.0", "above 0"],
    "clip is text": ["Job.clip_grad_norm is '1'", "above 0"],
    "collate is text": ["Job.collate_fn is a str", "give a function"],
    "data is text": ["Job.data", "<U1", "numbers"],
}


def refusal(launcher: Launcher, job: Any = f"{REFUSED}:job", **options: Any) -> str:
    """The message with which the job is refused: whole, without a traceback."""
    with pytest.raises(samestep.Refused) as caught:
        samestep.train(job, launcher=launcher, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "Traceback" not in message
    assert 20 < len(message) < 700
    return message


def assert_says(message: str, words: list[str]) -> None:
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} missing in: {message}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_job_is_refused_with_both_sides_and_the_way_out(launcher: Launcher, fault: str) -> None:
    assert_says(refusal(launcher, workers=2, settings={"fault": fault}), FAULTS[fault])


def test_the_unspoiled_job_trains(launcher: Launcher) -> None:
    assert samestep.train(f"{REFUSED}:job", workers=2, launcher=launcher).steps == 2


@pytest.mark.parametrize("transport", ["processes", "threads"])
@pytest.mark.parametrize("fault", ["adds in forward", "scales data in forward", "loss per row", "metric is no pair"])
def test_a_refusal_by_a_worker_reads_the_same_on_every_transport(
    launcher: Launcher, fault: str, transport: str
) -> None:
    message = refusal(launcher, workers=2, transport=transport, settings={"fault": fault})
    assert_says(message, FAULTS[fault])


PLAN = 'numerics = "seed=0 shards=4"\nassign = [2, 2]\n'

OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no workers": ({"workers": 0}, ["--workers 0", "at least 1"]),
    "negative workers": ({"workers": -2}, ["--workers -2", "at least 1"]),
    "workers as text": ({"workers": "2"}, ["--workers '2'", "whole number"]),
    "more workers than shards": (
        {"workers": 5},
        ["5 workers", "4 shards", "--workers 4", "--shards 5", "part of the numbers", "Job.shards"],
    ),
    "no shards": ({"shards": 0}, ["--shards 0", "at least 1"]),
    "more shards than rows": ({"shards": 100}, ["100 shards", "16 rows", "--shards"]),
    "assignment too small": ({"assign": [1, 1]}, ["1,1", "2 shards", "has 4", "--assign", "--shards 2"]),
    "assignment too large": ({"assign": [5, 3]}, ["5,3", "8 shards", "has 4", "--assign", "--shards 8"]),
    "negative share": ({"assign": [5, -1]}, ["5,-1", "negative share"]),
    "empty assignment": ({"assign": []}, ["(empty)", "no worker"]),
    "assignment as text": ({"assign": "2,2"}, ["'2,2'", "[5, 3]"]),
    "assignment of text": ({"assign": ["2", "2"]}, ["['2', '2']", "[5, 3]"]),
    "assignment of other workers": ({"assign": [2, 2], "workers": 3}, ["--workers 3", "2,2", "leave one of them out"]),
    "no threads": ({"threads": 0}, ["--threads 0", "at least 1"]),
    "unknown transport": ({"transport": "mpi"}, ["'mpi'", "processes, threads"]),
    "no steps": ({"steps": 0}, ["--steps 0", "at least 1"]),
    "no time to wait": ({"timeout": 0}, ["--timeout 0", "above 0"]),
    "negative epochs": ({"epochs": -1}, ["--epochs -1", "at least 1"]),
    "negative seed": ({"seed": -1}, ["--seed -1", "at least 0"]),
    "half a step": ({"steps": 1.5}, ["--steps 1.5", "whole number"]),
    "resume from nowhere": ({"resume": True}, ["--resume", "add --checkpoint DIR"]),
    "every without checkpoint": ({"every": 2}, ["--every", "add --checkpoint DIR"]),
    "no such setting": ({"settings": {"rate": 1}}, ["no setting 'rate'", "fault, lr, hidden"]),
    "setting that cannot travel": ({"settings": {"lr": {1, 2}}}, ["settings of job", "set", "plain values"]),
    "settings too long": ({"settings": {"fault": "x" * 300_000}}, ["bytes are more", "name of a file"]),
    "settings as a list": ({"settings": ["lr"]}, ["['lr']", "by name"]),
    "numerics without sense": ({"numerics": "fast"}, ["--numerics", "'fast'", "NAME=VALUE", "seed, shards"]),
    "numerics of another field": ({"numerics": "seed=0 speed=9"}, ["'speed=9'", "seed, shards"]),
    "numerics of a wrong type": ({"numerics": "shards=many"}, ["shards=many", "int", "shards=4"]),
    "numerics of no bool": ({"numerics": "sync_batchnorm=1"}, ["sync_batchnorm=1", "sync_batchnorm=true"]),
    "numerics of another torch": ({"numerics": "torch=1.13"}, ["torch=1.13", "this run has torch=2", "leave torch"]),
    "numerics of another optimizer": ({"numerics": "optimizer=Adam"}, ["optimizer=Adam", "optimizer=SGD"]),
    "numerics of an unknown precision": ({"numerics": "precision=half"}, ["'half'", "bfloat16"]),
    "numerics against a flag": ({"numerics": "seed=1", "seed": 2}, ["--seed says seed=2", "--numerics says seed=1"]),
    "negative shards in numerics": ({"numerics": "shards=-4"}, ["shards=-4", "at least 1"]),
    "no such plan": ({"plan": "hybrid.toml"}, ["hybrid.toml", "neither a known plan", "hybrid, pipeline) nor a file"]),
    "no such module function": ({"job": f"{REFUSED}:digits"}, ["no function 'digits'", "it has", "FILE:FUNCTION"]),
    "not a function": ({"job": f"{REFUSED}:not_a_function"}, ["no function 'not_a_function'", "FILE:FUNCTION"]),
    "a class that makes no job": ({"job": f"{REFUSED}:Nothing"}, ["returned a Nothing", "return samestep.Job"]),
    "no such file": ({"job": "nowhere.py:job"}, ["no file nowhere.py", "looked in"]),
    "a folder": ({"job": str(JOBS)}, ["no file", "Python file"]),
    "returns nothing": ({"job": f"{REFUSED}:returns_nothing"}, ["returned a NoneType", "return samestep.Job"]),
    "setting without default": ({"job": f"{REFUSED}:needs"}, ["needs the setting 'path'", "--set path=VALUE"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit_are_refused(launcher: Launcher, case: str) -> None:
    options, words = OPTIONS[case]
    assert_says(refusal(launcher, **options), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("assign: 2, 2", ["is not a plan", "line 1"]),
        ("", ["fields", "assign", "numerics"]),
        ('numerics = "seed=0"\nassign = "2,2"\n', ["assign = '2,2'", "list"]),
        ('numerics = "seed=0"\nassign = [2.0, 2]\n', ["[2.0, 2]", "whole numbers"]),
        (PLAN.replace("shards=4", "shards=8"), ["2,2", "4 shards", "has 8"]),
        (PLAN.replace("shards=4", "speed=4"), ["my.toml", "'speed=4'"]),
        (PLAN + "workers = 2\n", ["'workers'", "a plan has"]),
        (PLAN + 'transport = "mpi"\n', ["'mpi'", "processes, threads"]),
    ],
    ids=["no toml", "empty", "text", "floats", "other shards", "unknown field", "extra", "transport"],
)
def test_a_plan_file_that_does_not_fit_is_refused(
    launcher: Launcher, tmp_path: Path, text: str, words: list[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(text)
    assert_says(refusal(launcher, plan=str(file)), words)


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'", "line 1"),
        ("import os\ndef job(:\n    pass\n", "SyntaxError: ", "line 2"),
        ("x = 1\n\nraise ValueError('not today')\n", "ValueError: not today", "line 3"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", "line 2"),
    ],
    ids=["import", "syntax", "raises", "exits"],
)
def test_a_file_that_workers_cannot_import_is_refused_with_its_line(
    launcher: Launcher, tmp_path: Path, text: str, error: str, line: str
) -> None:
    file = tmp_path / "cannot.py"
    file.write_text(text)
    assert_says(refusal(launcher, str(file)), ["workers cannot import", "cannot.py", error, line])


def test_a_file_named_like_a_loaded_module_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "random.py"
    shutil.copy(REFUSED, file)
    assert_says(refusal(launcher, str(file)), ["random.py", "already loaded", "rename the file"])


def test_functions_that_workers_cannot_name_are_refused(launcher: Launcher) -> None:
    def nested() -> samestep.Job:
        raise AssertionError("never called")

    for function in (lambda: nested(), nested, print, Launcher.run, 3):
        message = refusal(launcher, function)
        assert_says(message, ["workers cannot import", "top level of a module", "settings={...}"])


# Settings on the command line: text that is typed by the function's annotations and defaults.


def called_with(text: str) -> samestep.Job:
    name, _, value = text.partition("=")
    return call(refused.typed, JobSource(settings={name: value}, settings_are_text=True))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("number=8", 8),
        ("rate=1e-3", 1e-3),
        ("rate=none", None),
        ("flag=True", True),
        ("flag=false", False),
        ("mode=sum", "sum"),
        ("needed=a=b", "a=b"),
        ("needed=", ""),
        ("free=3", "3"),
        ("anything=x", "x"),
        ("either=3", 3),
        ("either=three", "three"),
        ("where=a/b", Path("a/b")),
    ],
)
def test_a_setting_has_the_type_of_its_annotation_or_default(
    text: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    called_with(text)
    assert f"{text.partition('=')[0]} = {value!r}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("number=eight", ["number as int", "'eight'", "--set number=8"]),
        ("rate=fast", ["rate as float", "'fast'", "--set rate=0.1"]),
        ("flag=yes", ["flag as bool", "'yes'", "--set flag=true"]),
        ("mode=max", ["mode as 'sum' or 'mean'", "'max'", "--set mode=sum"]),
        ("sizes=3", ["sizes as list[int]", "cannot spell", "bool, int, float, str or Path"]),
        ("nmber=3", ["no setting 'nmber'", "number, rate", "--set nmber"]),
    ],
)
def test_settings_of_a_wrong_name_or_type_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(samestep.Refused) as caught:
        called_with(text)
    assert_says(str(caught.value), words)


# Checkpoints that do not belong here, or are damaged.


@pytest.fixture(scope="module")
def checkpoints(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints after 1 and 2 steps of the good job."""
    folder = tmp_path_factory.mktemp("checkpoints") / "of the good job"
    samestep.train(f"{REFUSED}:job", workers=2, checkpoint=folder, every=1, launcher=launcher)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wider", ["another job", "parameters", "(8, 6)", "(9, 6)"]),
        ("frozen", ["another job", "parameter groups", "0.weight"]),
        ("buffer", ["another job", "buffers", "3.running_mean"]),
        ("adam", ["optimizer=SGD", "this run has optimizer=Adam"]),
        ("groups", ["another job", "parameter groups"]),
        ("scheduler", ["another job", "scheduler is None", "StepLR"]),
        ("rows", ["another job", "number of rows is 64", "48"]),
        ("batch", ["another job", "batch size is 16", "8"]),
        ("order", ["another job", "shuffle is True", "False"]),
    ],
)
def test_a_checkpoint_of_another_job_is_refused_by_the_first_difference(
    launcher: Launcher, checkpoints: Path, kind: str, words: list[str]
) -> None:
    message = refusal(
        launcher, f"{REFUSED}:other", settings={"kind": kind}, checkpoint=checkpoints, resume=True, workers=2
    )
    assert_says(message, [*words, str(checkpoints)])
    assert re.search("resume with|use another", message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, ["seed=0", "this run has seed=1"]),
        ({"shards": 2}, ["shards=4", "this run has shards=2"]),
        ({"threads": 2}, ["threads=1", "this run has threads=2"]),
        ({"numerics": "precision=bfloat16"}, ["precision=float32", "this run has precision=bfloat16"]),
    ],
    ids=["seed", "shards", "threads", "precision"],
)
def test_a_checkpoint_of_other_numerics_is_refused_with_the_line_that_goes_on(
    launcher: Launcher, checkpoints: Path, options: dict[str, Any], words: list[str]
) -> None:
    message = refusal(launcher, checkpoint=checkpoints, resume=True, workers=2, **options)
    assert_says(message, [*words, "--numerics", "seed=0 shards=4 threads=1"])


def flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def digit_of_step(folder: Path) -> None:
    path = folder / "checkpoint.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 1'))


DAMAGE = {
    "a byte of a tensor": lambda folder: flip(folder / "worker-1.safetensors"),
    "a byte of a header": lambda folder: flip(folder / "worker-0.safetensors", 12),
    "a truncated tensor": lambda folder: (folder / "worker-0.safetensors").write_bytes(b"\0" * 9),
    "a truncated description": lambda folder: (folder / "checkpoint.json").write_text('{"format": 1, "st'),
    "an empty description": lambda folder: (folder / "checkpoint.json").write_text(""),
    "a description of something else": lambda folder: (folder / "checkpoint.json").write_text("[1, 2]"),
    "a digit of the description": digit_of_step,
    "a lost file": lambda folder: (folder / "worker-1.safetensors").unlink(),
    "a lost description": lambda folder: (folder / "checkpoint.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_named(
    launcher: Launcher, checkpoints: Path, tmp_path: Path, damage: str
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, root)
    DAMAGE[damage](root / "step-00000002")
    message = refusal(launcher, checkpoint=root, resume=True, workers=2)
    assert_says(message, ["step-00000002 is damaged", "remove the folder to go on from step-00000001"])
    shutil.rmtree(root / "step-00000002")
    assert samestep.train(f"{REFUSED}:job", workers=1, checkpoint=root, resume=True, launcher=launcher).steps == 2


def test_a_folder_with_checkpoints_is_not_trained_into_without_resume(launcher: Launcher, checkpoints: Path) -> None:
    assert_says(refusal(launcher, checkpoint=checkpoints), ["step-00000002", "--resume", "name another folder"])


def test_a_checkpoint_of_a_later_format_is_refused(launcher: Launcher, checkpoints: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, root)
    path = root / "step-00000002" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert_says(refusal(launcher, checkpoint=root, resume=True), ["format 99", "reads 1", "version that wrote it"])


def test_places_that_cannot_be_written_are_refused_before_training(launcher: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here")
    assert_says(refusal(launcher, save=tmp_path / "no folder" / "w.safetensors"), ["--save", "must be a folder"])
    assert_says(refusal(launcher, save=tmp_path), ["--save", "FILE no folder"])
    assert_says(refusal(launcher, checkpoint=file), ["--checkpoint", "is a file; name a folder"])
    assert_says(refusal(launcher, checkpoint=file / "below"), ["--checkpoint", "is a file; name a folder"])
    assert list(tmp_path.iterdir()) == [file]


# The same through the real command: exit code 2, one message, nothing left behind.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py"], ["there is no file nowhere.py"]),
        ([f"{REFUSED}:digits"], ["no function 'digits'"]),
        ([REFUSED, "--workers", "0"], ["--workers 0", "at least 1"]),
        ([REFUSED, "--workers", "8"], ["8 workers", "4 shards", "part of the numbers"]),
        ([REFUSED, "--assign", "5,x"], ["'5,x'", "for instance 5,3"]),
        ([REFUSED, "--assign", "5,3"], ["8 shards", "has 4"]),
        ([REFUSED, "--set", "lr=fast"], ["lr as float", "'fast'", "--set lr=0.1"]),
        ([REFUSED, "--set", "lr"], ["'lr' is not NAME=VALUE", "--set lr=0.1"]),
        (
            [REFUSED, "--plan", "hybird"],
            ["--plan hybird", "neither a known plan", "hybrid, pipeline) nor a file"],
        ),
        ([REFUSED, "--workers", "2", "--set", "fault=scales data in forward"], ["forward changed parameter 2.bias"]),
        ([REFUSED, "--save", "no/folder.safetensors"], ["--save", "must be a folder"]),
        ([REFUSED, "--resume"], ["--resume", "add --checkpoint DIR"]),
    ],
    ids=lambda value: " ".join(map(str, value[1:])) if isinstance(value, list) else "",
)
def test_the_command_refuses_with_one_message_and_exit_code_2(
    tmp_path: Path, arguments: list[object], words: list[str]
) -> None:
    ended = Command(tmp_path).run("train", *arguments, "--quiet")
    assert (ended.code, ended.out, len(ended.errors)) == (2, "", 1)
    assert ended.err.startswith("samestep: ")
    assert_says(ended.err, words)


@pytest.mark.parametrize("arguments", [["--workers", "two"], ["--fast"], ["--device", "tpu"], ["--transport", "mpi"]])
def test_words_that_the_command_does_not_know_are_refused_by_usage(tmp_path: Path, arguments: list[str]) -> None:
    ended = Command(tmp_path).run("train", REFUSED, *arguments)
    assert ended.code == 2
    assert "Usage:" in ended.err
    assert "Traceback" not in ended.err


# Scripts of their own.

SCRIPT = """
import sys
import torch
import samestep

def job():
    x, y = torch.zeros(32, 2), torch.zeros(32, 1)
    return samestep.Job(model=lambda: torch.nn.Linear(2, 1), loss=torch.nn.MSELoss(), data=(x, y), batch_size=16,
                        optimizer=lambda params: torch.optim.SGD(params, 0.1), shards=2)

"""

TRAINS = {
    "the function": "print(samestep.train(job, workers=2).digest)",
    "the file by name": "print(samestep.train(__file__ + ':job', workers=2).digest)",
    "the command": (
        "import subprocess\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'samestep', 'train', __file__, '--workers', '2']).returncode)"
    ),
}


@pytest.mark.parametrize("how", TRAINS)
def test_a_script_that_trains_while_it_is_imported_is_told_of_the_guard(tmp_path: Path, how: str) -> None:
    (tmp_path / "unguarded.py").write_text(SCRIPT + TRAINS[how])
    ended = Command(tmp_path).run("unguarded.py", module=None)
    assert ended.code != 0
    assert 'if __name__ == "__main__":' in ended.err
    assert "this script trains while workers import it" in ended.err


@pytest.mark.parametrize("how", ["the function", "the file by name"])
def test_a_guarded_script_trains(tmp_path: Path, how: str) -> None:
    (tmp_path / "guarded.py").write_text(SCRIPT + 'if __name__ == "__main__":\n    ' + TRAINS[how])
    ended = Command(tmp_path).run("guarded.py", module=None)
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch("[0-9a-f]{64}", ended.out.strip())


def test_a_module_of_a_package_trains_when_run_with_m(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(SCRIPT)
    (package / "main.py").write_text(
        "from .parts import job as good, samestep\n\ndef job():\n    return good()\n\n"
        f"if __name__ == '__main__':\n    {TRAINS['the function']}"
    )
    ended = Command(tmp_path).run(module="package.main")
    assert (ended.code, ended.err) == (0, "")


def test_a_function_that_was_typed_in_is_refused(tmp_path: Path) -> None:
    program = SCRIPT.replace("\n\n", "\n") + TRAINS["the function"]
    ended = Command(tmp_path).run("-c", program, module=None)
    assert ended.code == 1
    assert_says(ended.errors[-1], ["workers cannot import job", "typed in", "save it in a file"])

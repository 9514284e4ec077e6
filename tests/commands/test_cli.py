"""The command line: what it prints where, what another run accepts, and how soon it answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import samestep
from commands import Command, Ended
from samestep.commands.options import parse_assign, split_job
from samestep.launch.run.launcher import Launcher
from samestep.plan.plan import Plan

LASTING = Path(__file__).parents[1] / "jobs_bad" / "lasting.py"
RUN = ("train", LASTING, "--workers", 2, "--steps", 5)
FIELDS = {"digest", "losses", "seconds_per_step", "workers", "assign", "shards", "numerics", "plan", "metrics"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One run with --json and everything else it prints."""
    return Command(tmp_path_factory.mktemp("run")).run(*RUN, "--json", "--save", "w.safetensors", cold=True)


@pytest.fixture(scope="module")
def result(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    return json.loads(ended.out.splitlines()[-1])  # type: ignore[no-any-return]


def digest_of(launcher: Launcher, tmp_path: Path, **options: Any) -> str:
    settings = {"notes": str(tmp_path / "notes")}
    return samestep.train(f"{LASTING}:job", settings=settings, steps=5, launcher=launcher, **options).digest


def test_json_is_one_object_on_the_last_line_of_stdout(ended: Ended, result: dict[str, Any]) -> None:
    assert ended.out.count("\n") == 1
    assert result.keys() >= FIELDS
    assert (len(result["digest"]), len(result["losses"])) == (64, 5)
    assert (result["workers"], result["assign"], result["shards"], result["metrics"]) == (2, [1, 1], 2, {})
    assert result["seconds_per_step"] > 0
    assert f'numerics = "{result["numerics"]}"' in result["plan"]


def test_progress_and_summary_go_to_stderr(ended: Ended, result: dict[str, Any]) -> None:
    first = "2 workers (processes), 1 thread each, shards 1+1, 5 steps of 16 rows"
    assert ended.errors[:3] == [
        first,
        f"numerics: {result['numerics']}",
        "2 of 2 workers up, threads per worker: 1, 1",
    ]
    assert ended.errors[-1] == f"digest {result['digest']}"
    assert ended.errors[-4].startswith("done: 5 steps, loss ")
    assert [line.split(":")[0] for line in ended.errors[-3:-1]] == ["worker 0", "worker 1"]


@pytest.mark.parametrize(("steps", "timed"), [(3, False), (4, True)])
def test_seconds_per_step_is_null_with_fewer_than_four_steps(
    launcher: Launcher, tmp_path: Path, steps: int, timed: bool
) -> None:
    settings = {"notes": str(tmp_path / "notes")}
    report = samestep.train(f"{LASTING}:job", settings=settings, steps=steps, workers=2, launcher=launcher)
    assert (json.loads(json.dumps(report.as_json()))["seconds_per_step"] is not None) is timed


def test_the_printed_numerics_line_gives_the_same_digest(
    launcher: Launcher, tmp_path: Path, result: dict[str, Any]
) -> None:
    again = digest_of(launcher, tmp_path, numerics=result["numerics"], workers=1)
    assert again == result["digest"]
    other = result["numerics"].replace("seed=0", "seed=1")
    assert digest_of(launcher, tmp_path, numerics=other, workers=2) != result["digest"]


def test_a_saved_plan_is_accepted_and_gives_the_same_digest(tmp_path: Path, result: dict[str, Any]) -> None:
    (tmp_path / "my.toml").write_text(result["plan"].replace("assign = [1, 1]", "assign = [2]"))
    ended = Command(tmp_path).run("train", LASTING, "--steps", 5, "--plan", "my.toml", "--quiet", "--json")
    again = json.loads(ended.out)
    assert (again["digest"], again["workers"]) == (result["digest"], 1)


def test_the_api_takes_a_plan_as_a_value(launcher: Launcher, tmp_path: Path, result: dict[str, Any]) -> None:
    assert digest_of(launcher, tmp_path, plan=Plan.parse(result["plan"])) == result["digest"]


def test_saved_weights_are_those_of_the_report(launcher: Launcher, tmp_path: Path) -> None:
    settings = {"notes": str(tmp_path / "notes")}
    file = tmp_path / "w.safetensors"
    report = samestep.train(f"{LASTING}:job", settings=settings, steps=5, workers=2, save=file, launcher=launcher)
    weights = report.state_dict()
    assert weights.keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
    saved = load_file(file)
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    ended = Command(tmp_path).run(*RUN, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_what_the_job_prints_comes_once_and_before_the_json_line(tmp_path: Path) -> None:
    source = LASTING.read_text().replace("def job(", 'print("imported")\n\n\ndef job(')
    (tmp_path / "speaking.py").write_text(source)
    ended = Command(tmp_path).run("train", "speaking.py", "--workers", 2, "--steps", 2, "--quiet", "--json")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[:-1] == ["imported"]
    assert json.loads(lines[-1])["workers"] == 2


def test_the_job_function_is_called_job_unless_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").touch()
    for text, function in (("a.py", "job"), ("a.py:", "job"), ("a.py:digits", "digits")):
        assert split_job(f"{tmp_path}/{text}") == (tmp_path / "a.py", function)


@pytest.mark.parametrize(("text", "assign"), [("5,3", (5, 3)), ("8", (8,)), (" 6, 1 ,1", (6, 1, 1))])
def test_an_assignment_is_a_list_of_numbers(text: str, assign: tuple[int, ...]) -> None:
    assert parse_assign(text) == assign


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["doctor", "--help"], ["--version"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    program = (
        "import sys, samestep.cli\n"
        "try:\n    samestep.cli.main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert answer.stdout
    assert answer.stderr == "[]\n"


def test_every_option_of_the_design_is_in_the_help() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "samestep", "train", "--help"], capture_output=True, text=True, check=True
    )
    for option in [
        "--workers",
        "--shards",
        "--assign",
        "--threads",
        "--transport",
        "--plan",
        "--numerics",
        "--steps",
        "--epochs",
        "--seed",
        "--set",
        "--device",
        "--save",
        "--checkpoint",
        "--every",
        "--resume",
        "--allow-nan",
        "--json",
        "--quiet",
    ]:
        assert option in answer.stdout


def test_files_named_like_library_modules_do_not_disturb_the_workers(tmp_path: Path) -> None:
    for name in ("random.py", "queue.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    ended = Command(tmp_path).run("-P", "-m", "samestep", *RUN, "--quiet", module=None)
    assert (ended.code, ended.err) == (0, "")

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from samestep.errors import JobRefused, PlanRefused, Refused
from samestep.job.job import Job
from samestep.launch.request.importing import SCRIPT, call, load_function, typed
from samestep.launch.request.options import JobSource


@pytest.fixture(autouse=True)
def modules_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def request(file: Path | None = None, **fields: Any) -> JobSource:
    return JobSource(file=None if file is None else str(file), **fields)


def make_job(**fields: Any) -> Job:
    chosen: dict[str, Any] = {"batch_size": 4, **fields}
    return Job(
        model=lambda: nn.Linear(2, 2),
        loss=F.mse_loss,
        optimizer=lambda params: optim.SGD(params, lr=0.1),
        data=(torch.zeros(8, 2), torch.zeros(8, 2)),
        **chosen,
    )


# --------------------------------------------------------------------------------------- the function


def test_a_function_of_a_file_is_found_and_its_neighbours_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("ANSWER = 42\n")
    file = tmp_path / "my-training.py"
    file.write_text("import my_neighbour\ndef job():\n    return my_neighbour.ANSWER\n")
    assert load_function(request(file))() == 42


def test_a_script_is_imported_under_another_name_than_main(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(
        "NAME = __name__\ndef job():\n    return NAME\nif __name__ == '__main__':\n    raise SystemExit(3)\n"
    )
    assert load_function(request(file, module="__main__"))() == SCRIPT
    assert "script" not in sys.modules


def test_a_function_of_a_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "jobs.py").write_text("def digits():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function(request(module="my_package.jobs", function="digits"))() == 7


def test_a_missing_function_is_refused_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text("from os.path import join\ndef digits(): pass\ndef letters(): pass\nvalue = 3\n")
    with pytest.raises(JobRefused, match=r"has no function 'job' \(it has digits, letters\): name one with FILE:FUNC"):
        load_function(request(file))


def test_a_name_that_is_no_function_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nothing.py"
    file.write_text("job = 3\n")
    with pytest.raises(JobRefused, match=r"has no function 'job' \(it has no functions\)"):
        load_function(request(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module_at_all\n", r"ModuleNotFoundError: No module named 'no_such_module_at_all' \(line 1\)"),
        ("\n\nx = 1 / 0\n", r"ZeroDivisionError: division by zero \(line 3\)"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit(4)\n", r"SystemExit: 4 \(line 2\)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken_job.py"
    file.write_text(text)
    with pytest.raises(JobRefused, match=f"workers cannot import .*broken_job.py: {said}"):
        load_function(request(file))


def test_a_refusal_while_importing_stays_itself(tmp_path: Path) -> None:
    file = tmp_path / "refusing_job.py"
    file.write_text("from samestep.errors import PlanRefused\nraise PlanRefused('this very plan')\n")
    with pytest.raises(PlanRefused, match="this very plan"):
        load_function(request(file))


def test_a_file_that_would_hide_a_module_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "random.py"
    file.write_text("def job(): pass\n")
    with pytest.raises(JobRefused, match="rename the file"):
        load_function(request(file))


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(JobRefused, match="workers cannot import the job's module 'no_such_module_at_all'"):
        load_function(request(module="no_such_module_at_all"))


# --------------------------------------------------------------------------------------- its settings


def test_text_becomes_what_the_annotation_says() -> None:
    seen: dict[str, Any] = {}

    def job(
        lr: float = 0.1,
        rows: int = 4,
        name: str = "x",
        norm: bool = True,
        clip: float | None = None,
        where: Path = Path(),
        kind: Literal["a", "b"] = "a",
        plain=3,  # type: ignore[no-untyped-def]
        open_=None,  # type: ignore[no-untyped-def]
    ) -> Job:
        seen.update(locals())
        return make_job()

    text = {
        "lr": "1",
        "rows": "16",
        "name": "3",
        "norm": "False",
        "clip": "none",
        "where": "data",
        "kind": "b",
        "plain": "5",
        "open_": "text",
    }
    call(job, request(settings=text, settings_are_text=True))
    expected = {"lr": 1.0, "rows": 16, "name": "3", "norm": False, "clip": None, "where": Path("data"), "kind": "b"}
    assert {name: seen[name] for name in expected} == expected
    assert type(seen["lr"]) is float
    assert seen["plain"] == 5
    assert seen["open_"] == "text"


def test_values_stay_what_they_are() -> None:
    def job(sizes: list[int], lr: float = 0.1) -> Job:
        assert sizes == [1, 2]
        assert lr == 3
        return make_job()

    assert isinstance(call(job, request(settings={"sizes": [1, 2], "lr": 3})), Job)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (int, "1.5", "takes x as int, --set gives '1.5': write for example --set x=8"),
        (float, "fast", "takes x as float, --set gives 'fast': write for example --set x=0.1"),
        (bool, "yes", "takes x as bool, --set gives 'yes': write for example --set x=true"),
        (int | None, "many", "takes x as int"),
        (Literal["relu", "gelu"], "tanh", "'relu' or 'gelu'"),
        (list[int], "1,2", "which --set cannot spell"),
    ],
    ids=str,
)
def test_text_of_another_type_is_refused_with_an_example(kind: Any, text: str, said: str) -> None:
    with pytest.raises(JobRefused) as refused:
        typed("digits", "x", text, kind)
    assert said in str(refused.value)
    assert str(refused.value).startswith("digits takes x as ")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "-3", -3),
        (float, "1e-3", 1e-3),
        (float, "inf", float("inf")),
        (bool, "TRUE", True),
        (str, "none", "none"),
        (str | None, "None", None),
        (int | float, "2", 2),
        (int | float, "2.5", 2.5),
        (Any, "x", "x"),
    ],
    ids=str,
)
def test_text_as_its_type(kind: Any, text: str, value: Any) -> None:
    found = typed("digits", "x", text, kind)
    assert found == value
    assert type(found) is type(value)


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    def digits(lr: float = 0.1, width: int = 8) -> Job:
        return make_job()

    with pytest.raises(JobRefused, match=r"digits has no setting 'lrr' \(its settings: lr, width\)"):
        call(digits, request(settings={"lrr": "1"}, settings_are_text=True))


def test_a_setting_that_is_needed_and_not_given_is_refused() -> None:
    def digits(folder: str, lr: float = 0.1) -> Job:
        return make_job()

    with pytest.raises(JobRefused, match="digits needs the setting 'folder': give it a default, or --set folder=VALUE"):
        call(digits, request())


def test_a_function_that_takes_anything_gets_it() -> None:
    def digits(**settings: Any) -> Job:
        assert settings == {"a": "1"}
        return make_job()

    call(digits, request(settings={"a": "1"}, settings_are_text=True))


@pytest.mark.parametrize("result", [None, 3, {"model": None}, Job])
def test_a_function_that_returns_no_job_is_refused(result: Any) -> None:
    with pytest.raises(JobRefused, match=r"digits returned a \w+, not a samestep\.Job"):
        call(named(result), request())


def named(result: Any) -> Any:
    def digits() -> Any:
        return result

    return digits


def test_what_the_function_raises_is_its_own() -> None:
    def digits() -> Job:
        raise FileNotFoundError("no such data")

    with pytest.raises(FileNotFoundError, match="no such data"):
        call(digits, request())
    assert not issubclass(FileNotFoundError, Refused)

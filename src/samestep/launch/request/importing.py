"""Find the user's job function and call it. Code never travels: the file or module is imported."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samestep.errors import JobRefused, Refused
from samestep.job.job import Job
from samestep.launch.request.options import JobSource
from samestep.system.json_values import plain
from samestep.training.job_identity import Origin

SCRIPT = "__samestep_main__"  # the name under which a script is imported


def load_function(source: JobSource) -> Callable[..., Any]:
    """Import a source's function. Raises JobRefused when file, module or function cannot be found."""
    if source.file is not None:
        module = _import_file(Path(source.file), script=source.module == "__main__")
        where = source.file
    else:
        where = str(source.module)
        module = _import_module(where)
    function = getattr(module, source.function, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        known = f"it has {', '.join(names)}" if names else "it has no functions"
        raise JobRefused(f"{where} has no function {source.function!r} ({known}): name one with FILE:FUNCTION")
    return function  # type: ignore[no-any-return]


def _import_file(file: Path, *, script: bool) -> types.ModuleType:
    name = SCRIPT if script else file.stem
    if getattr(sys.modules.get(name), "__file__", None) == str(file):
        del sys.modules[name]  # from an earlier run in this process: this one imports it under its own seed
    if name in sys.modules:
        raise JobRefused(
            f"{file} has the name of a module that is already loaded ({name}), which it would hide: rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise JobRefused(f"{file} is not a Python file: a job is a function in a .py file")
    sys.path.insert(0, str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Refused:
        raise
    except BaseException as error:
        raise JobRefused(f"workers cannot import {file}: {_last_line(error)}{_place(error, file)}") from error
    return module


def _import_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise JobRefused(
            f"workers cannot import the job's module {name!r}: {_last_line(error)}; "
            "put the job into a file or module that can be imported"
        ) from error


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _place(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" (line {lines[-1]})" if lines else ""


def call(function: Callable[..., Any], source: JobSource) -> Job:
    """The job that the function returns for the given settings. Raises JobRefused."""
    settings = settings_for(function, source)
    job = function(**settings)
    if not isinstance(job, Job):
        name = getattr(function, "__name__", source.function)
        raise JobRefused(
            f"{name} returned a {type(job).__name__}, not a samestep.Job: end it with `return samestep.Job(...)`"
        )
    return job


def settings_for(function: Callable[..., Any], source: JobSource) -> dict[str, Any]:
    """The arguments that a source gives a job function, as values. Raises JobRefused."""
    settings = dict(source.settings)
    name = getattr(function, "__name__", source.function)
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(function)
    for key, value in settings.items():
        if key not in parameters and not takes_any:
            known = ", ".join(parameters) or "none"
            raise JobRefused(f"{name} has no setting {key!r} (its settings: {known}): correct --set {key}=...")
        if source.settings_are_text:
            default = parameters[key].default if key in parameters else inspect.Parameter.empty
            settings[key] = typed(name, key, value, hints.get(key, type(default)))
    missing = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and k not in settings and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing:
        raise JobRefused(f"{name} needs the setting {missing[0]!r}: give it a default, or --set {missing[0]}=VALUE")
    return settings


def origin_of(source: JobSource) -> Origin:
    """Origin of the job of this process: its function's arguments, defaults included, and its file's hash."""
    name = SCRIPT if source.module == "__main__" else Path(source.file).stem if source.file else source.module
    module = sys.modules.get(str(name))
    function = getattr(module, source.function, None)
    settings = dict(source.settings)
    if inspect.isfunction(function):
        defaults = inspect.signature(function).parameters.items()
        with contextlib.suppress(JobRefused):  # another function than the one that has made the job
            settings = settings_for(function, source)
            settings = {n: p.default for n, p in defaults if p.default is not p.empty} | settings
    file = source.file or getattr(module, "__file__", None)
    with contextlib.suppress(OSError):
        found = None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        return Origin({n: as_plain(value) for n, value in settings.items()}, found)
    return Origin({n: as_plain(value) for n, value in settings.items()})


def as_plain(value: Any) -> Any:
    """A setting as JSON holds it; a text for what it cannot hold."""
    try:
        return plain(value, "a setting")
    except JobRefused:
        return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - an annotation that cannot be evaluated is no annotation
        return {}


def typed(function: str, name: str, text: str, kind: Any) -> Any:
    """A setting's text as a value of its annotation (or its default's type). Raises JobRefused."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    choices = [k for k in kinds if k is not type(None)]
    for choice in choices:
        with contextlib.suppress(ValueError):
            return _as(choice, text)
    if kind in UNTYPED or not choices:
        return text
    wanted = " or ".join(_type_text(choice) for choice in choices)
    if not any(choice in PLAIN or typing.get_origin(choice) is typing.Literal for choice in choices):
        raise JobRefused(
            f"{function} takes {name} as {wanted}, which --set cannot spell: let the job function take a "
            "bool, int, float, str or Path and make it from that"
        )
    example = {"bool": "true", "int": "8", "float": "0.1"}.get(wanted, wanted.split(" or ")[0].strip("'"))
    raise JobRefused(
        f"{function} takes {name} as {wanted}, --set gives {text!r}: write for example --set {name}={example}"
    )


PLAIN = (bool, int, float, str, Path)
UNTYPED = (type, Any, object, inspect.Parameter.empty)  # no annotation and no default, or an annotation without meaning


def _as(kind: Any, text: str) -> Any:
    """Raises ValueError when `text` does not spell a `kind`."""
    if kind in PLAIN and kind is not bool:
        return kind(text)
    spelled: dict[str, Any] = {}
    if kind is bool:
        text, spelled = text.lower(), {"true": True, "false": False}
    elif typing.get_origin(kind) is typing.Literal:
        spelled = {str(value): value for value in typing.get_args(kind)}
    if text not in spelled:
        raise ValueError(text)
    return spelled[text]


def _type_text(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return str(kind) if typing.get_args(kind) else getattr(kind, "__name__", str(kind))

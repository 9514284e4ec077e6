"""Functions of a schedule, which its `state_dict` does not hold, and the values that they read.

A `LambdaLR` saves no function. So a schedule is compared by the rates that it gives in the next steps, by the values of
its functions at a few steps, and by the plain values that these functions find in closures and globals.
"""

import contextlib
import copy
import functools
import inspect
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, optim

from samestep.errors import JobRefused
from samestep.system.json_values import plain

AHEAD = 64  # steps that a schedule is looked at ahead
SCHEDULED = ("lr", "momentum", "betas")
SMALL = 1000  # numbers of a value that is looked at
DEPTH = 4  # of functions that read functions


def rates_ahead(optimizer: optim.Optimizer, scheduler: Any) -> dict[str, Any] | None:
    """The scheduled hyperparameters 1, 2, 4, ... 64 steps from now; None for a schedule that cannot be copied."""
    stand_in = copy.copy(optimizer)
    vars(stand_in).pop("step", None)  # the schedule counts its calls
    stand_in.param_groups = [
        {k: copy.deepcopy(v) for k, v in group.items() if k != "params"} | {"params": []}
        for group in optimizer.param_groups
    ]
    found = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is stepped before its optimizer
            ahead = copy.deepcopy(scheduler, {id(optimizer): stand_in})
            for step in range(1, AHEAD + 1):
                ahead.step()
                if step & (step - 1) == 0:
                    found[str(step)] = [
                        {k: plain(g[k], "the schedule") for k in SCHEDULED if k in g} for g in stand_in.param_groups
                    ]
    except Exception:  # noqa: BLE001 - the user's code, outside of the run that it is written for
        return None
    return found


def function_values(scheduler: Any, steps: int) -> dict[str, Any]:
    """The values of a schedule's functions of one number at 0, 1, 2, 4, ... up to `steps`, by name and number."""
    found = {}
    at = [0, *(1 << i for i in range(steps.bit_length()))]
    for name, function in functions_of(scheduler):
        for step in at:
            try:
                found[f"{name}({step})"] = plain(function(step), "the schedule")
            except Exception as error:  # noqa: BLE001 - the user's code
                found[f"{name}({step})"] = type(error).__name__
    return found


def values_read(scheduler: Any) -> dict[str, Any]:
    """The plain values that a schedule's functions read from outside, by where they are read."""
    found: dict[str, Any] = {}
    for name, function in functions_of(scheduler):
        for variable, value in _read(function, set(), 0):
            found[f"{variable} in {name}"] = value
    return found


def functions_of(scheduler: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The functions of a schedule and of those that it is made of; objects with `__call__` are in its state."""
    for name, value in vars(scheduler).items():
        for i, item in enumerate(value if isinstance(value, list | tuple) else [value]):
            where = f"{path}{name}[{i}]" if isinstance(value, list | tuple) else f"{path}{name}"
            if isinstance(item, optim.lr_scheduler.LRScheduler):
                yield from functions_of(item, f"{where}.")
            elif isinstance(item, types.FunctionType | functools.partial) and name != "step":
                yield where, item


def _read(function: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if depth > DEPTH or id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        given = {str(i): value for i, value in enumerate(function.args)} | function.keywords
        variables: Mapping[str, Any] = {f"argument {name}": value for name, value in given.items()}
        yield from _read(function.func, seen, depth + 1)
    elif isinstance(function, types.MethodType):
        variables = {"self": function.__self__}
        yield from _read(function.__func__, seen, depth + 1)
    elif isinstance(function, types.FunctionType):
        try:
            outside = inspect.getclosurevars(function)
        except (TypeError, ValueError):
            return
        variables = {**outside.globals, **outside.nonlocals}
        variables |= {f"default {i}": value for i, value in enumerate(function.__defaults__ or ())}
    else:
        return
    for name, value in variables.items():
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            yield from _read(value, seen, depth + 1)
        else:
            yield from _plain_parts(name, value)


def _plain_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value that JSON can hold, or those attributes of an object that are such values."""
    if isinstance(value, types.ModuleType | type):
        return
    if not is_small(value):
        return
    try:
        yield name, plain(value, name)
    except JobRefused:
        attributes = vars(value) if hasattr(value, "__dict__") and not callable(value) else {}
        if is_dataclass(value) or isinstance(value, types.SimpleNamespace) or attributes:
            for attribute, item in attributes.items():
                with contextlib.suppress(JobRefused):
                    if is_small(item):
                        yield f"{name}.{attribute}", plain(item, name)


def is_small(value: Any, most: int = SMALL) -> bool:
    """Whether a value has few numbers in all: data that a function happens to see are no part of a schedule."""
    return _count(value, most) <= most


def _count(value: Any, most: int) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    if not isinstance(value, dict | list | tuple):
        return 1
    total = len(value)
    for item in value.values() if isinstance(value, dict) else value:
        if total > most:
            break
        total += _count(item, most)
    return total

"""Sizes: how much a stranger has to hold in mind at once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import samestep

SRC = Path(samestep.__file__).parent

LARGEST_CLASS = 200  # lines
MOST_PARAMETERS = 8
MOST_LOOSE_MODULES = 5
MOST_LINES = 39_500  # 34,500 before jobs were asked whether they keep what a plan assumes (docs/lab-log.md)

CALLED_BY_USERS = ("api.train", "api.verify")
"""Functions whose parameters are what users may set; so are those of commands and of exported classes."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts)


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
    """The functions in a module, with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            own = f"{name}.{child.name}"
            if isinstance(child, Function):
                yield own, child
            yield from functions(child, own)
        else:
            yield from functions(child, name)


def parameters(function: Function) -> int:
    """The number of a function's parameters, without self or cls."""
    given = function.args
    named = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + sum(map(bool, (given.vararg, given.kwarg)))


def is_command(function: Function) -> bool:
    """True for a function that click calls: its parameters are a command's options."""
    return any("command(" in ast.unparse(decorator) for decorator in function.decorator_list)


@cache
def exported_classes() -> set[str]:
    exported = [getattr(samestep, name) for name in samestep.__all__]
    return {f"{value.__module__}.{value.__qualname__}".removeprefix("samestep.")
            for value in exported if isinstance(value, type)}  # fmt: skip


def users_call(name: str, function: Function) -> bool:
    return name in CALLED_BY_USERS or is_command(function) or name.rpartition(".")[0] in exported_classes()


def test_no_class_is_larger_than_a_few_screens() -> None:
    large = {}
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno) > LARGEST_CLASS:
                large[f"{module_name(file)}.{node.name}"] = lines
    assert not large, f"a class has at most {LARGEST_CLASS} lines"


def test_a_function_that_users_do_not_call_has_few_parameters() -> None:
    many = {
        name: parameters(function)
        for file in sources()
        for name, function in functions(ast.parse(file.read_text()), module_name(file))
        if parameters(function) > MOST_PARAMETERS and not users_call(name, function)
    }
    assert not many, f"at most {MOST_PARAMETERS}: what belongs together is a value of its own"


def test_nobody_asks_which_executor_it_has() -> None:
    """Kinds of executor own what differs: a caller that asks is a caller that the next kind breaks."""
    asking = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("isinstance", "issubclass"):
                continue
            if "Executor" in ast.unparse(node.args[1]):
                asking.append(f"{module_name(file)}:{node.lineno}")
    assert not asking


def test_few_modules_stand_outside_of_a_room() -> None:
    assert len(list(SRC.glob("*.py"))) <= MOST_LOOSE_MODULES


def test_the_package_can_be_read() -> None:
    assert sum(len(file.read_text().splitlines()) for file in sources()) <= MOST_LINES

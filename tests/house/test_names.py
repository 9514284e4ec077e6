"""Names: one word has one meaning, and a docstring says what its thing is or does."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import samestep

SRC = Path(samestep.__file__).parent

ONE_IDEA_IN_TWO_ROOMS = {
    "options.py": {
        "commands/options.py": "the options of a request as flags of the command line",
        "launch/request/options.py": "the same options as fields",
    },
    "plan.py": {
        "commands/plan.py": "the command that prints what the other defines: `samestep plan` is its name for users",
        "plan/plan.py": "the plan itself",
    },
}
"""Files that may share a base name, each with its reason."""

SAY_NOTHING = ("utils.py", "helpers.py", "manager.py", "common.py", "misc.py")
FRAGMENTS = ("Of", "All that", "What", "Where", "Whether what")
"""Beginnings of docstrings that leave a stranger without a subject."""


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def place(file: Path) -> str:
    return str(file.relative_to(SRC))


def docstrings(file: Path) -> list[tuple[str, str]]:
    """(place, text) of the docstrings of a module, its classes and functions."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, documented)]
    return [(f"{place(file)}:{getattr(node, 'lineno', 1)}", text) for node, text in found if text]


def is_fragment(text: str) -> bool:
    return any(text.startswith(f"{words} ") for words in FRAGMENTS)


def test_no_two_classes_share_a_name() -> None:
    defined = defaultdict[str, list[str]](list)
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(f"{place(file)}:{node.lineno}")
    assert not {name: places for name, places in defined.items() if len(places) > 1}


def test_no_two_files_share_a_base_name_unless_they_are_one_idea() -> None:
    named = defaultdict[str, set[str]](set)
    for file in sources():
        if file.name != "__init__.py":
            named[file.name].add(place(file))
    shared = {name: places for name, places in named.items() if len(places) > 1}
    assert shared == {name: set(reasons) for name, reasons in ONE_IDEA_IN_TWO_ROOMS.items()}


def test_no_file_is_named_for_what_did_not_fit_elsewhere() -> None:
    assert not [place(file) for file in sources() if file.name in SAY_NOTHING]


@pytest.mark.parametrize("init", sorted(SRC.rglob("*/__init__.py")), ids=place)
def test_a_room_says_what_it_is_for(init: Path) -> None:
    text = ast.get_docstring(ast.parse(init.read_text()))
    assert text, f"{place(init)} has no docstring: what is the room for, and what may it not know?"
    assert len(text.splitlines()) <= 6, f"{place(init)} says more than a paragraph"


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    fragments = [f"{where}: {text.splitlines()[0]}" for file in sources() for where, text in docstrings(file)
                 if is_fragment(text)]  # fmt: skip
    assert not fragments, "\n".join(["say the subject first:", *fragments])

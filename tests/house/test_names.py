"""Names: one word has one meaning."""

import ast
from collections import defaultdict
from pathlib import Path

import samestep

SRC = Path(samestep.__file__).parent

SAY_NOTHING = ("utils.py", "helpers.py", "manager.py", "common.py", "misc.py")


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def place(file: Path) -> str:
    return str(file.relative_to(SRC))


def test_no_two_classes_share_a_name() -> None:
    defined = defaultdict[str, list[str]](list)
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(f"{place(file)}:{node.lineno}")
    assert not {name: places for name, places in defined.items() if len(places) > 1}


def test_no_file_is_named_for_what_did_not_fit_elsewhere() -> None:
    assert not [place(file) for file in sources() if file.name in SAY_NOTHING]

"""The rooms and their order: a file imports only from lower layers and from its own room."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import samestep

SRC = Path(samestep.__file__).parent

LAYERS: dict[str, int] = {
    "errors": 0,
    # what everybody uses and what knows nobody
    "numerics": 1,
    "system": 1,
    "schedule": 1,
    "codec": 1,
    "trace": 1,
    # what, with what, who; and the bytes between them
    "data": 2,
    "job": 2,
    "plan": 2,
    "transport": 2,
    # when workers must agree, how a step is computed in parts, who should do what
    "sync": 3,
    "parallel": 3,
    "planner": 3,
    # plan + job -> this worker's part; the state of a run
    "state": 4,
    "setup": 4,
    # the loop, and those who watch it
    "audit": 5,
    "training": 5,
    # what a run was like
    "verification": 6,
    "diagnose": 6,
    # the one door
    "launch": 7,
    # the faces
    "doctor": 8,
    "bench": 8,
    "commands": 8,
    "api": 8,
    "cli": 8,
    "__init__": 8,
    "__main__": 8,
}
"""Every room, a folder of samestep, and its layer; beside them, the five files at the top. Between rooms of one
layer, imports go one way."""

FORBIDDEN = ("pickle", "marshal", "shelve", "dill", "cloudpickle")
"""Modules that run code when they read."""


@cache
def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder below samestep, or the file itself."""
    return file.relative_to(SRC).with_suffix("").parts[0]


def module_name(file: Path) -> str:
    parts = file.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_of(module: str) -> Path | None:
    path = SRC.parent.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


@cache
def imported(file: Path) -> set[Path]:
    """The files of samestep that `file` imports, anywhere in it; `from room import file` is the file."""
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {file_of(name.name) for name in node.names if name.name.split(".")[0] == "samestep"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samestep":
            found |= {file_of(f"{node.module}.{name.name}") or file_of(str(node.module)) for name in node.names}
    return {path for path in found if path is not None and path != file}


def test_every_source_file_has_a_place_in_the_table() -> None:
    rooms = {room_of(file) for file in sources()}
    assert rooms - set(LAYERS) == set(), "new rooms: give them a layer"
    assert set(LAYERS) - rooms == set(), "rooms that are gone: take them out of the table"


def test_contributors_are_shown_the_same_table() -> None:
    text = (SRC.parents[1] / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]*) \| [^|]+ \|$", text, re.MULTILINE)
    shown = {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert shown == {room: layer for room, layer in LAYERS.items() if not room.startswith("__")}


def test_contributors_are_shown_every_folder() -> None:
    text = (SRC.parents[1] / "CONTRIBUTING.md").read_text()
    shown: set[Path] = set()
    for line in text.partition("    src/samestep/\n")[2].partition("\n\n")[0].splitlines():
        room, _, inside = line.strip().partition(":")
        shown |= {Path(name) for name in re.findall(r"(\w+)/", room)}
        shown |= {Path(room) / name for name in re.findall(r"(\w+)/", inside)}
    assert shown == {file.parent.relative_to(SRC) for file in sources()} - {Path()}


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(SRC)))
def test_a_file_imports_only_from_lower_layers_and_its_own(file: Path) -> None:
    own = LAYERS[room_of(file)]
    upwards = [module_name(other) for other in imported(file) if LAYERS[room_of(other)] > own]
    assert not upwards, f"{module_name(file)} of layer {own} imports from above"


def test_imports_have_no_cycle() -> None:
    graph = {module_name(file): {module_name(other) for other in imported(file)} for file in sources()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError and names the cycle
    assert len(order) == len(graph)
    assert order.index("samestep.errors") < order.index("samestep.cli")


def test_rooms_have_no_cycle_either() -> None:
    """Two folders that import from one another are one folder."""
    graph: dict[str, set[str]] = {}
    for file in sources():
        if file.name not in ("__init__.py", "__main__.py"):
            graph.setdefault(room_of(file), set()).update(room_of(other) for other in imported(file))
    for room, others in graph.items():
        others.discard(room)
    assert list(TopologicalSorter(graph).static_order())


def test_imports_are_absolute() -> None:
    for file in sources():
        relative = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{module_name(file)} has a relative import, which this test cannot see"


@cache
def names_in(file: Path) -> set[str]:
    """Every dotted name that is read or imported in `file`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute | ast.Name):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_the_environment_is_read_in_one_file_only() -> None:
    readers = {
        module_name(file)
        for file in sources()
        if names_in(file) & {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}
    }
    writes_a_childs = "samestep.verification.script.forked_runs"  # RANK, WORLD_SIZE and so on, as torchrun would
    assert readers == {"samestep.launch.environment", writes_a_childs}


def test_nothing_that_runs_code_when_it_reads() -> None:
    for file in sources():
        names = names_in(file)
        assert not {name for name in names if name.split(".")[0] in FORBIDDEN}, module_name(file)
        assert not names & {"torch.load", "torch.save", "eval", "exec", "np.load", "numpy.load"}, module_name(file)


def test_no_socket_listens_on_a_network() -> None:
    for file in sources():
        names = names_in(file)
        assert not names & {"socket.AF_INET", "socket.AF_INET6", "socket.create_server"}, module_name(file)


@pytest.mark.parametrize("module", ["samestep", "samestep.cli", "samestep.launch.run.launcher"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'rich', 'safetensors'}} & set(sys.modules)), sep=',')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""

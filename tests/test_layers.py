"""The rooms and their order: a file imports only from lower layers and from its own room."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import samestep

SRC = Path(samestep.__file__).parent

LAYERS: dict[str, int] = {
    "errors": 0,
    # what everybody uses and what knows nobody
    "device": 1,
    "numerics": 1,
    "tree": 1,
    "plain": 1,
    "trace": 1,
    "codec": 1,
    "schedule": 1,
    "heap": 1,
    "unnamed": 1,
    "units": 1,
    "finite_json": 1,
    # what, with what, who; and the bytes between them
    "job": 2,
    "plan": 2,
    "machine": 2,
    "linktimes": 2,
    "cluster": 2,
    "data": 2,
    "columns": 2,
    "files": 2,
    "loading": 2,
    "ordered": 2,
    "parquet": 2,
    "parquet_headers": 2,
    "batches": 2,
    "loss": 2,
    "metrics": 2,
    "streams": 2,
    "callbacks": 2,
    "report": 2,
    "outline": 2,
    "prediction": 2,
    "scheduler": 2,
    "training_data": 2,
    "transport": 2,
    # when workers must agree
    "consistency": 3,
    # who should do what: thinking about numbers
    "planner": 3,
    # the techniques
    "parallel": 4,
    # plan + job -> this worker's part; the state of a run
    "prepared": 5,
    "executor_inputs": 5,
    "shared_memory": 5,
    "logical_workers": 5,
    "parallelize": 5,
    "presets": 5,
    "planned": 5,
    "survey": 5,
    "plain_loop": 5,
    "checkpoint": 5,
    "snapshot": 5,
    "digest": 5,
    "evaluate": 5,
    # a training step on one screen, and the loop around it
    "watch": 5,
    "auditing": 6,
    "bookkeeping": 6,
    "step": 6,
    "replay": 6,
    "copies": 6,
    "inquiry": 6,
    "trainer": 6,
    # what a run was like
    "diagnose": 7,
    "proof": 7,
    # the one door
    "launch": 8,
    "doctor": 8,
    "bench": 8,
    "commands": 8,
    "cli": 8,
    "api": 8,
    "__init__": 8,
    "__main__": 8,
}
"""Every room, a folder or a file of samestep, and its layer. Between rooms of one layer, imports go one way."""

FORBIDDEN = ("pickle", "marshal", "shelve", "dill", "cloudpickle")
"""Modules that run code when they read."""


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
    rows = re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)
    shown = {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert shown == {room: layer for room, layer in LAYERS.items() if not room.startswith("__")}


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
    writes_a_childs = "samestep.proof.scripts.enter"  # RANK, WORLD_SIZE and so on, as torchrun would
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


@pytest.mark.parametrize("module", ["samestep", "samestep.cli", "samestep.launch.launcher"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'rich', 'safetensors'}} & set(sys.modules)), sep=',')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""

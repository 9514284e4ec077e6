"""The documents: their examples run, their links resolve, and the files that they name exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import samestep
from samestep.cli import main

ROOT = Path(__file__).parents[2]
SRC = Path(samestep.__file__).parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
INDEX = ROOT / "docs" / "README.md"

READERS_FILES = {"job.py", "separate.py", "script.py", "SCRIPT.py", "train_ddp.py", "dataset.py", "digits.py"}
"""Files of a reader's own, which the documents use as examples."""


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """The name that a heading has in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_example_gives_one_digest_as_a_script_and_as_a_command(tmp_path: Path) -> None:
    (block,) = python_blocks((ROOT / "README.md").read_text())
    (tmp_path / "separate.py").write_text(block)
    _, digest = run(tmp_path, "separate.py").split()
    assert (tmp_path / "weights.pt").is_file()
    command = re.search(r"^ +samestep (train separate\.py .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command is not None
    out = run(tmp_path, "-m", "samestep", *command[1].split(), "--json", "--quiet")
    assert f'"digest": "{digest}"' in out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        name, _, section = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), f"{document.name} links to {target}"
        if section:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert section in map(anchor, headings), f"{document.name} links to {target}"


def links(document: Path) -> list[Path]:
    """The files of this project that a document links to, without their sections."""
    targets = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", without_code(document.read_text()))
    return [(document.parent / target).resolve() for target in targets if "://" not in target]


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_every_page_is_in_the_index() -> None:
    linked = set(links(INDEX))
    pages = set(ROOT.glob("docs/**/*.md")) - {INDEX}
    assert len(pages) > 20
    assert not [str(page.relative_to(ROOT)) for page in sorted(pages) if page.resolve() not in linked]
    assert INDEX.resolve() in links(ROOT / "README.md")


def test_every_line_of_the_index_has_a_link() -> None:
    items = re.findall(r"^- (.*(?:\n  .*)*)", INDEX.read_text(), re.MULTILINE)
    assert len(items) > 60
    assert not [item for item in items if "](" not in item]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_python_file_that_is_named_exists(document: Path) -> None:
    """Paths are below the root, `src/samestep`, `tests` or the document's folder; a bare name may be anywhere.

    The log names files as they were.
    """
    if document.name == "lab-log.md":
        return
    folders = [ROOT, SRC, ROOT / "tests", document.parent]
    bare = {path.name for top in ("src", "tests", "benchmarks", "examples") for path in (ROOT / top).rglob("*.py")}
    named = set(re.findall(r"(?<![\w/.*-])((?:\.\./)*\w[\w/.-]*\.py)\b", document.read_text()))
    gone = [
        name
        for name in sorted(named - READERS_FILES)
        if name not in bare and not any((folder / name).is_file() for folder in folders)
    ]
    assert not gone


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_inner_name_exists(document: Path) -> None:
    """`samestep.room.module` or a name inside. The log and the changelog name what has moved."""
    if document.name in ("lab-log.md", "CHANGELOG.md", "0019-rooms.md"):
        return
    modules = {".".join(path.relative_to(SRC.parent).with_suffix("").parts) for path in SRC.rglob("*.py")}
    rooms = {".".join(path.parent.relative_to(SRC.parent).parts) for path in SRC.rglob("*.py")}
    known = modules | rooms | {f"samestep.{name}" for name in samestep.__all__}
    named = set(re.findall(r"`(samestep(?:\.\w+)+)", document.read_text()))
    assert not [name for name in sorted(named) if name not in known and name.rpartition(".")[0] not in modules]


def test_every_file_of_the_journey_exists() -> None:
    text = (ROOT / "docs" / "journey.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 15
    assert not [name for name in sorted(named) if not (SRC / name).is_file()]


def test_the_journey_is_about_as_long_as_it_says() -> None:
    text = (ROOT / "docs" / "journey.md").read_text()
    table = {name: int(lines) for name, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|$", text, re.MULTILINE)}
    total = re.search(r"^\| (\d+) files \| (\d+) \|$", text, re.MULTILINE)
    assert total is not None
    assert (int(total[1]), int(total[2])) == (len(table), sum(table.values()))
    real = sum(len((SRC / name).read_text().splitlines()) for name in table)
    assert sum(table.values()) == pytest.approx(real, rel=0.05), "count again"


def test_every_option_of_every_command_is_described() -> None:
    text = (ROOT / "docs" / "command.md").read_text()
    params = [param for command in main.commands.values() for param in command.params]
    options = [name for param in params for name in param.opts if name.startswith("-")]
    assert len(options) > 15
    assert not [name for name in options if not re.search(rf"`{name}[` ]", text)]


def test_every_field_of_the_json_line_is_described() -> None:
    text = (ROOT / "docs" / "command.md").read_text()
    report = samestep.Report("", [], None, 1, (1,), 1, "", "", {}, 0, None, [])
    assert not [name for name in report.as_json() if f"`{name}`" not in text]


def test_every_benchmark_is_in_the_list() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/*.py")}
    assert not [name for name in sorted(folders) if f"{name}/" not in text]


def test_decisions_are_numbered_and_have_their_headings() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        title, *headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        assert title.startswith(page.name[:4])
        assert headings == ["Context", "Decision", "Reasons and what we tried", "Consequences"], page.name


def test_every_bug_of_the_zoo_is_one_that_a_test_makes() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([^|]*) \|", (ROOT / "docs" / "zoo.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 23))
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "zoo").glob("test_*.py"))
    for _, made in rows:
        names = [name for name in re.findall(r"`([^`]+)`", made) if "=" not in name]
        assert names
        for name in names:
            stem = Path(name).stem.removesuffix("_...")
            assert re.search(rf"\b{stem}", tests), f"no test of the zoo knows {name}"

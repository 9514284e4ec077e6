"""The path from a training step to the new weight stays short, and the journey describes the one that is measured."""

import re
import sys
from pathlib import Path

import pytest

from samestep.launch.run.launcher import Launcher

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "path"))

import run as path  # noqa: E402

MOST_FILES, MOST_LINES, MOST_ENTERED = 11, 1500, 30


@pytest.fixture(scope="module")
def measured(launcher: Launcher) -> path.StepPath:
    return path.traced(launcher)


def test_a_newcomer_reads_little() -> None:
    read = path.must_read()
    assert 5 < len(read) <= MOST_FILES
    assert sum(map(path.lines_of, read)) <= MOST_LINES


def test_an_ordinary_step_enters_few_files(measured: path.StepPath) -> None:
    assert len(measured.ordinary) <= MOST_ENTERED, sorted(measured.ordinary)


def test_the_journey_names_every_file_that_a_step_enters(measured: path.StepPath) -> None:
    read, beside = set(path.must_read()), set(path.beside())
    assert not read & beside
    assert not read - set(measured.ordinary) - set(measured.first_of_its_size), "to be read, but no step enters it"
    assert not set(measured.ordinary) - read - beside, "entered, but in neither table of docs/journey.md"


def test_files_to_be_read_stand_in_the_text_in_their_order() -> None:
    """The last one named is the executor once more, where the step ends."""
    text = path.JOURNEY.read_text().partition("## How long it is")[0]
    named = re.findall(r"\*\*`([\w/]+\.py)`\*\*", text)
    assert named[:-1] == path.must_read()


def test_watching_stands_beside_the_doing(measured: path.StepPath) -> None:
    """What only looks on is entered by steps that look: no ordinary step goes through the watch or a comparison."""
    assert "audit/memory_watch.py" not in measured.ordinary
    assert "audit/differences.py" in measured.audited
    assert any(name.startswith("Bookkeeping._") for name in measured.epochs_end["audit/ledger.py"])

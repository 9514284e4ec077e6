"""Which files does a step go through? `python benchmarks/path/run.py`.

Trains a small model on two workers and lists the files of samestep that an ordinary step of worker 0 enters, with their
lines and the functions entered; those that the journey says must be read first. Then what other steps add.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import samestep
from job import BATCHES
from samestep.launch.request.options import AUDIT_EVERY
from samestep.launch.run.launcher import Launcher

FOLDER = Path(__file__).resolve().parent
SRC = Path(samestep.__file__).parent
JOURNEY = FOLDER.parents[1] / "docs" / "journey.md"
FIRST = 10  # steps that are left out: the audit measures in them what it may cost

Entered = dict[str, set[str]]  # the functions that were entered, by file


@dataclass(frozen=True)
class StepPath:
    """What steps of worker 0 enter, by their kind: all functions that any step of it enters."""

    ordinary: Entered
    watched: Entered  # steps before which, or in which, memory at rest is looked at
    audited: Entered
    epochs_end: Entered


def traced(launcher: Launcher | None = None) -> StepPath:
    """Train on two workers, and sort the steps. The first ones and those that reassign shards are of no kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        samestep.train(f"{FOLDER / 'job.py'}:job", workers=2, settings={"file": str(file)}, launcher=launcher)
        steps = {int(step): joined([entered]) for step, entered in json.loads(file.read_text()).items()}
    steps = {
        step: entered for step, entered in steps.items() if step >= FIRST and "setup/parallelize.py" not in entered
    }
    audited = {step for step in steps if (step + 1) % AUDIT_EVERY == 0}
    ends = {step for step in steps if (step + 1) % BATCHES == 0}
    watched = {step for step in steps if "audit/memory_watch.py" in steps[step]} - audited - ends
    kinds = (set(steps) - audited - ends - watched, watched, audited, ends)
    return StepPath(*(joined(flat(steps[step]) for step in sorted(kind)) for kind in kinds))


def joined(steps: Iterable[Iterable[tuple[str, str]]]) -> Entered:
    found: Entered = {}
    for step in steps:
        for file, function in step:
            found.setdefault(file, set()).add(function)
    return found


def flat(entered: Entered) -> list[tuple[str, str]]:
    return [(file, function) for file, functions in entered.items() for function in functions]


def lines_of(file: str) -> int:
    return len((SRC / file).read_text().splitlines())


def must_read() -> list[str]:
    """The files of the journey's table of the path."""
    return re.findall(r"^\| `([\w/]+\.py)` \| \d+ \|$", JOURNEY.read_text(), re.MULTILINE)


def beside() -> list[str]:
    """The files of the journey's table of those beside the path."""
    return re.findall(r"^\| `([\w/]+\.py)` \| [^|\d][^|]* \|$", JOURNEY.read_text(), re.MULTILINE)


def main() -> None:
    path = traced()
    read = must_read()
    print(f"an ordinary step enters {len(path.ordinary)} files:")
    for file in [*read, *sorted(set(path.ordinary) - set(read))]:
        functions = sorted(name for name in path.ordinary.get(file, ()) if "<" not in name)
        print(f"{'read' * (file in read):4} {lines_of(file):4} {file}: {', '.join(functions)}")
    print(f"to be read: {len(read)} files, {sum(map(lines_of, read))} lines")
    others = {"a watched step": path.watched, "an audit": path.audited, "an epoch's end": path.epochs_end}
    for kind, entered in others.items():
        print(f"{kind} adds {', '.join(sorted(set(entered) - set(path.ordinary))) or 'no file'}")


if __name__ == "__main__":
    sys.exit(main())

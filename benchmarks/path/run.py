"""Which files does a step go through? `python benchmarks/path/run.py`.

Trains a small model on two workers and lists the files of samestep that an ordinary step of worker 0 enters, with their
lines and the functions entered; those that the journey says must be read first. Then what other steps add. The last
batch of an epoch is short: at the first epoch's end, the list of actions of steps with as many rows is made.
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
REASSIGNS = ["training/drift.py", "Drift._take"]

Entered = dict[str, set[str]]  # the functions that were entered, by file


@dataclass(frozen=True)
class StepPath:
    """The functions that steps of worker 0 enter, by the kind of step.

    watched: in the watch over memory at rest, which an ordinary step may have or not.
    """

    ordinary: Entered
    watched: Entered
    audited: Entered
    epochs_end: Entered
    first_of_its_size: Entered


def traced(launcher: Launcher | None = None) -> StepPath:
    """Train on two workers, and sort the steps. The first ones and those that reassign shards are of no kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        samestep.train(f"{FOLDER / 'job.py'}:job", workers=2, settings={"file": str(file)}, launcher=launcher)
        steps = {int(step): own for step, own in json.loads(file.read_text()).items() if int(step) >= FIRST}
    first_of_its_size = steps.pop(BATCHES - 1)["entered"]
    steps = {step: own for step, own in steps.items() if REASSIGNS not in own["entered"]}
    audited = [own["entered"] for step, own in steps.items() if (step + 1) % AUDIT_EVERY == 0]
    ends = [own["entered"] for step, own in steps.items() if (step + 1) % BATCHES == 0]
    others = [own["entered"] for own in steps.values() if own["entered"] not in (*audited, *ends)]
    watched = [own["watched"] for own in steps.values()]
    return StepPath(*map(joined, (others, watched, audited, ends, [first_of_its_size])))


def joined(steps: Iterable[Iterable[tuple[str, str]]]) -> Entered:
    found: Entered = {}
    for file, function in (one for step in steps for one in step):
        found.setdefault(file, set()).add(function)
    return found


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
    others = {
        "a watched step": path.watched,
        "an audit": path.audited,
        "an epoch's end": path.epochs_end,
        "the first step with as many rows": path.first_of_its_size,
    }
    for kind, entered in others.items():
        files = sorted(set(entered) - set(path.ordinary))
        more = {name for file in entered for name in entered[file] - path.ordinary.get(file, set())}
        print(f"{kind} adds {len(files)} files ({', '.join(files)}) and {len(more)} functions")


if __name__ == "__main__":
    sys.exit(main())

"""The measured steps, and which of them a calibration uses: by their configurations alone."""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from published.calibration import spread_out

from samestep.errors import Refused

COLUMNS = {
    "# GPUs": "gpus",
    "global batch": "batch",
    "micro batch": "rows",
    "hidden size": "hidden",
    "attention heads": "heads",
    "# layers": "layers",
    "sequence length": "sequence",
    "tensor parallelism": "ways",
    "data parallelism": "copies",
    "pipeline parallelism": "stages",
}
TIME = "iteration time (ms)"

Shape = tuple[int, ...]  # the part of a plan that a layer's kernels depend on
Group = tuple[int, ...]  # a question: one model and batch on one number of GPUs


@dataclass(frozen=True, order=True)
class Row:
    gpus: int
    batch: int
    rows: int
    hidden: int
    heads: int
    layers: int
    sequence: int
    ways: int
    copies: int
    stages: int
    seconds: float

    @property
    def microbatches(self) -> int:
        return math.ceil(self.batch / (self.rows * self.copies))

    @property
    def shape(self) -> Shape:
        return (self.hidden, self.heads, self.sequence, self.ways, self.rows)

    @property
    def group(self) -> Group:
        return (self.gpus, self.batch, self.hidden, self.heads, self.layers, self.sequence)

    @property
    def point(self) -> tuple[float, ...]:
        """The configuration on logarithmic axes, without the shape."""
        return tuple(math.log2(n) for n in (self.layers, self.copies, self.stages, self.microbatches))


def read(file: Path) -> list[Row]:
    """The rows in order of their configurations. Raises Refused if the file has another form."""
    if not file.is_file():
        raise Refused(f"{file} is missing: the measured steps are vtrain-single-node.csv, or a file of its columns")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in (*COLUMNS, TIME) if name not in (reader.fieldnames or ())]
        if missing:
            raise Refused(f"{file} has the columns {reader.fieldnames}, and misses {missing}")
        rows = [_row(fields, f"{file}, line {reader.line_num}") for fields in reader]
    if not rows:
        raise Refused(f"{file} has its columns and no rows: there is nothing to score")
    return sorted(rows)


def _row(fields: dict[str, str], place: str) -> Row:
    try:
        sizes = {field: int(float(fields[name])) for name, field in COLUMNS.items()}
        row = Row(**sizes, seconds=float(fields[TIME]) / 1000)
    except (TypeError, ValueError) as error:
        raise Refused(f"{place}: {error}; every column is a number") from None
    if min(sizes.values()) < 1 or not 0 < row.seconds < math.inf:
        raise Refused(f"{place}: {fields} has a size below 1 or a time that is none")
    return row


def groups(rows: Sequence[Row], least: int = 5) -> list[list[Row]]:
    """Rows by group, for groups of at least `least` plans."""
    found: dict[Group, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.group].append(row)
    return [plans for _, plans in sorted(found.items()) if len(plans) >= least]


def by_shape(rows: Sequence[Row], count: int, random: Random | None = None) -> list[Row]:
    """One row per shape, of the shapes that most plans of the scored groups have; further rows when there are fewer.

    Of a shape the row that is farthest from those chosen before, or any one of them when there is a `random`.
    """
    order = _common_shapes(rows)
    turns = [[i for i, row in enumerate(rows) if row.shape == shape] for shape in order]
    turns = (turns * math.ceil(count / len(turns)))[: min(count, len(rows))]
    if random is not None:
        return list(dict.fromkeys(rows[random.choice(turn)] for turn in turns))
    return list(dict.fromkeys(rows[i] for i in spread_out([row.point for row in rows], turns)))


def _common_shapes(rows: Sequence[Row]) -> list[Shape]:
    counts = Counter(row.shape for plans in groups(rows) for row in plans)
    return sorted(counts, key=lambda shape: (-counts[shape], shape))


def anyhow(rows: Sequence[Row], count: int, random: Random) -> list[Row]:
    """Random rows, all equally likely."""
    return random.sample(rows, min(count, len(rows)))

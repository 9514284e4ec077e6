"""A plan says who computes and keeps what: numerics, and an assignment of the grid to workers.

A data-parallel plan has the whole model on every worker and assigns shards. A plan with stages cuts the model: each
stage has its group of workers, assigns all shards to them, and may slice layers.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics, parse_line
from samestep.schedule.actions import Schedule
from samestep.schedule.grid import Grid, StageGrid, consecutive_ranges
from samestep.schedule.orders.written import stages_split, written_order
from samestep.schedule.passes import schedule_of

TRANSPORTS = ("processes", "threads")


PRESETS = ("auto", "data", "slices", "hybrid", "pipeline")
ORDERS = ("1f1b", "gpipe", "interleaved", "zero-bubble")


@dataclass(frozen=True)
class Stage:
    """One stage: the layers from `first` (empty: from the beginning) to the next stage's first one."""

    first: str
    workers: tuple[int, ...]  # ranks
    assign: tuple[int, ...]  # consecutive shards of each of them
    slices: tuple[tuple[str, tuple[int, ...]], ...] = ()  # layer, and its slices on each of them
    recompute: bool = False

    def shards_by_worker(self, num_shards: int) -> dict[int, range]:
        """The shards that each worker of the stage computes, in a step that has `num_shards`."""
        return dict(zip(self.workers, consecutive_ranges(self.assign, num_shards), strict=True))


@dataclass(frozen=True)
class Plan:
    """Frozen, and stable as text: `Plan.parse(str(plan)) == plan`.

    `assign[w]` is the number of consecutive shards that worker w computes; in a plan with stages, in
    the first stage that it belongs to. `staged` makes a plan with stages.
    """

    numerics: Numerics
    assign: tuple[int, ...]
    transport: str = "processes"
    stages: tuple[Stage, ...] = ()
    order: str | tuple[str, ...] = "1f1b"  # of a pipeline: by name, or written out, one line per worker
    depth: int = 1  # warm-up of 1f1b, more for slow links

    def __post_init__(self) -> None:
        if not self.assign or any(count < 0 for count in self.assign):
            raise PlanRefused(f"the assignment {spell(self.assign)} has no worker or a negative share")
        if self.transport not in TRANSPORTS:
            raise PlanRefused(f"unknown transport {self.transport!r} (known: {', '.join(TRANSPORTS)})")
        if self.depth < 1:
            raise PlanRefused(f"depth = {self.depth}: the warm-up is 1 or more times that of plain 1f1b")
        if isinstance(self.order, str) and self.order not in ORDERS:
            raise PlanRefused(f"unknown order {self.order!r} (known: {', '.join(ORDERS)})")
        for shares in [stage.assign for stage in self.stages] or [self.assign]:
            if sum(shares) != self.numerics.shards:
                raise PlanRefused(
                    f"the assignment {spell(shares)} gives out {sum(shares)} shards, the batch has "
                    f"{self.numerics.shards}: change --assign, or set --shards {sum(shares)} "
                    "(the number of shards is part of the numbers)"
                )
        for number, stage in enumerate(self.stages):
            _check_stage(number, stage, self.workers)
        if self.stages and self.numerics.sync_batchnorm:
            raise PlanRefused(
                "sync_batchnorm needs all shards of a step at once in every layer, and a plan with stages or slices "
                "computes them separately: use --plan data, or leave the statistics per shard"
            )

    @staticmethod
    def staged(numerics: Numerics, stages: Sequence[Stage], transport: str = "processes", **options: Any) -> "Plan":
        """A plan with stages, on the workers that they name. Raises PlanRefused when a rank is missing."""
        ranks = sorted({rank for stage in stages for rank in stage.workers})
        if not ranks or ranks != list(range(len(ranks))):
            raise PlanRefused(f"the stages name the workers {ranks}: number them 0, 1, ... without a gap")
        shares: dict[int, int] = {}
        for stage in stages:
            for rank, count in zip(stage.workers, stage.assign, strict=False):
                shares.setdefault(rank, count)
        return Plan(numerics, tuple(shares.get(rank, 0) for rank in ranks), transport, tuple(stages), **options)

    @property
    def workers(self) -> int:
        return len(self.assign)

    def on_one_worker(self) -> "Plan":
        """A plan with the same numerics, computed by one worker."""
        if not self.stages:
            return replace(self, assign=(self.numerics.shards,))
        stages = [
            replace(stage, workers=(0,), assign=(self.numerics.shards,), slices=_joined(stage.slices))
            for stage in self.stages
        ]
        return Plan.staged(self.numerics, stages, self.transport)

    def shards_of(self, rank: int, num_shards: int, stage: int = 0) -> range:
        """The shards that worker `rank` computes of a stage, in a step that has `num_shards` shards."""
        asked = num_shards, stage
        if asked not in self._shards:  # every step asks
            self._shards[asked] = self.stages_or_whole[stage].shards_by_worker(num_shards)
        return self._shards[asked].get(rank, range(0))

    @cached_property
    def _shards(self) -> dict[tuple[int, int], dict[int, range]]:
        return {}

    @property
    def stages_or_whole(self) -> tuple[Stage, ...]:
        """The stages; of a plan without them one that has the whole model on every worker."""
        return self.stages or (Stage("", tuple(range(self.workers)), self.assign),)

    def touched(self, rank: int, num_shards: int) -> list[int]:
        """The shards of which worker `rank` computes some stage, in order."""
        stages = range(max(1, len(self.stages)))
        return sorted({shard for stage in stages for shard in self.shards_of(rank, num_shards, stage)})

    def grid(self, num_shards: int, sliced: Sequence[tuple[bool, ...]]) -> Grid:
        """The step as schedules see it; `sliced[p]` says of each segment of stage p whether it is sliced."""
        grids = [
            StageGrid(s.workers, s.assign, kinds, s.recompute, self.splits_backward(number))
            for number, (s, kinds) in enumerate(zip(self.stages_or_whole, sliced, strict=True))
        ]
        return Grid(num_shards, self.set_size(num_shards), tuple(grids))

    def schedule(self, grid: Grid, rank: int, *, clip: bool, stale: int = 0, filling: bool = False) -> Schedule:
        """One step of worker `rank`. clip, stale, filling: as in `passes.schedule_of`. Raises PlanRefused."""
        order = self.order if isinstance(self.order, str) else written_order(self.order, grid, self.numerics.shards)
        lockstep = self.numerics.sync_batchnorm
        return schedule_of(
            grid, order, rank, depth=self.depth, clip=clip, lockstep=lockstep, stale=stale, filling=filling
        )

    def splits_backward(self, stage: int) -> bool:
        """Whether a stage makes the gradients of its weights later than that of its input."""
        if isinstance(self.order, str):
            return self.order == "zero-bubble" and bool(self.stages)
        return stage in stages_split(self.order)

    def set_size(self, num_shards: int) -> int:
        """Shards per join set: one when nothing joins them."""
        if not any(stage.slices for stage in self.stages):
            return 1
        return min(self.numerics.join or num_shards, num_shards)

    def __str__(self) -> str:
        head = (
            "# a samestep plan: who computes what. Edit it and give it back with --plan FILE.\n"
            f'numerics = "{self.numerics.line()}"\n'
            f'transport = "{self.transport}"\n'
        )
        if not self.stages:
            return head + f"assign = [{_numbers(self.assign)}]  # shards per worker\n"
        if isinstance(self.order, str):
            head += f'order = "{self.order}"\n'
        else:
            head += "order = [" + "".join(f'\n    "{line}",' for line in self.order) + "\n]\n"
        head += f"depth = {self.depth}\n" if self.depth != 1 else ""
        return head + "".join(map(_stage_text, self.stages))

    @staticmethod
    def parse(text: str, source: str = "plan") -> "Plan":
        """Read a plan's text. Raises PlanRefused with the place of the error."""
        fields = parse_fields(text, source)
        numerics = Numerics(**parse_line(fields["numerics"], source))  # type: ignore[arg-type]
        if "stage" not in fields:
            return Plan(numerics, tuple(fields["assign"]), fields["transport"])
        options = {name: fields[name] for name in OPTIONS if name in fields}
        return Plan.staged(numerics, parse_stages(fields["stage"]), fields["transport"], **options)


def _joined(slices: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((layer, (sum(counts),)) for layer, counts in slices)


def _check_stage(number: int, stage: Stage, workers: int) -> None:
    if len(stage.workers) != len(stage.assign) or not stage.workers or any(count < 0 for count in stage.assign):
        raise PlanRefused(
            f"stage {number} has the workers {spell(stage.workers)} and the assignment {spell(stage.assign)}: "
            "give every worker of the stage its number of shards"
        )
    if len(set(stage.workers)) != len(stage.workers) or not all(0 <= rank < workers for rank in stage.workers):
        raise PlanRefused(f"stage {number} has the workers {spell(stage.workers)}: name each worker once")
    for layer, counts in stage.slices:
        if len(counts) != len(stage.workers) or any(count < 0 for count in counts) or not sum(counts):
            raise PlanRefused(
                f"stage {number} gives the slices {spell(counts)} of {layer} to the workers {spell(stage.workers)}: "
                "give every worker of the stage its number of slices"
            )


def _stage_text(stage: Stage) -> str:
    text = (
        f'\n[[stage]]\nfirst = "{stage.first}"\nworkers = [{_numbers(stage.workers)}]\n'
        f"assign = [{_numbers(stage.assign)}]  # shards per worker of the stage\n"
    )
    text += "recompute = true\n" if stage.recompute else ""
    if stage.slices:
        text += "[stage.slices]  # slices of a layer per worker of the stage\n"
    return text + "".join(f'"{layer}" = [{_numbers(counts)}]\n' for layer, counts in stage.slices)


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


OPTIONS = ("order", "depth")
FIELDS: Mapping[str, type] = {"numerics": str, "transport": str, "assign": list, "order": str, "depth": int}
STAGE_FIELDS: Mapping[str, type] = {"first": str, "workers": list, "assign": list, "slices": dict, "recompute": bool}


def parse_fields(text: str, source: str) -> dict[str, Any]:
    """The fields of a plan's text, checked for presence and type but not for meaning. Raises PlanRefused."""
    try:
        fields = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanRefused(f"{source} is not a plan: {error}; print(report.plan) shows one") from None
    fields.setdefault("transport", "processes")
    staged = "stage" in fields
    if staged and not (isinstance(fields["stage"], list) and all(isinstance(table, dict) for table in fields["stage"])):
        raise PlanRefused(f"{source}: stage is one table or none: write every stage under [[stage]]")
    allowed = {"numerics", "transport", *(("stage", "order", "depth") if staged else ("assign",))}
    needed = {"numerics", "transport", "stage" if staged else "assign"}
    if not needed <= set(fields) <= allowed:
        raise PlanRefused(
            f"{source} has the fields {sorted(fields)}, a plan has {sorted(allowed)}, "
            "or [[stage]] tables instead of assign"
        )
    if isinstance(fields.get("order"), list) and all(isinstance(line, str) for line in fields["order"]):
        fields["order"] = tuple(fields["order"])
    plain = {name: value for name, value in fields.items() if name != "stage" and not isinstance(value, tuple)}
    _check_types(plain, FIELDS, source)
    for number, stage in enumerate(fields["stage"] if staged else ()):
        place = f"{source}: stage {number}"
        if not {"workers", "assign"} <= set(stage) <= set(STAGE_FIELDS):
            raise PlanRefused(
                f"{place} has the fields {sorted(stage)}, a stage has {list(STAGE_FIELDS)}, workers and assign at least"
            )
        _check_types(stage, STAGE_FIELDS, place)
        _check_types(stage.get("slices", {}), dict.fromkeys(stage.get("slices", {}), list), place)
    return fields


def _check_types(fields: Mapping[str, Any], expected: Mapping[str, type], source: str) -> None:
    for name, value in fields.items():
        if type(value) is not expected[name]:
            raise PlanRefused(f"{source}: {name} = {value!r} is no {expected[name].__name__}")
        if isinstance(value, list) and not all(type(count) is int for count in value):
            raise PlanRefused(f"{source}: {name} = {value} must be a list of whole numbers")


def parse_stages(tables: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """The [[stage]] tables of a plan. Layer names may still be patterns."""
    return tuple(
        Stage(
            table.get("first", ""),
            tuple(table["workers"]),
            tuple(table["assign"]),
            tuple((layer, tuple(counts)) for layer, counts in table.get("slices", {}).items()),
            table.get("recompute", False),
        )
        for table in tables
    )


def slices_text(stages: Sequence[Stage]) -> str:
    """The slices as the numerics spell them."""
    return ",".join(f"{layer}:{sum(counts)}" for stage in stages for layer, counts in stage.slices) or "none"


def equal_shares(shards: int, workers: int) -> tuple[int, ...]:
    """Shares that differ by at most one, the larger ones first."""
    return tuple(shards // workers + (w < shards % workers) for w in range(workers))


def workers_text(ranks: Collection[int]) -> str:
    """`worker 2`, `workers 0, 1`."""
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def spell(assign: Sequence[int]) -> str:
    return ",".join(map(str, assign)) or "(empty)"

"""Written orders: those that a plan spells out, one line of work per worker.

order = ["F0.0 F0.1 B0.0 B0.1",      F<stage>.<set> is a forward, B<stage>.<set> a backward
         "F1.0 B1.0 F1.1 B1.1"]

A stage with a W<stage>.<set> in any line splits its backwards: there B ends with the input's gradient, and W, any
time later, makes those of the weights. Every set then has its W at that stage.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from samestep.errors import PlanRefused
from samestep.schedule.grid import Grid
from samestep.schedule.orders.work import Kind, Work, Works, works_of

TOKEN = re.compile(r"([FBW])(\d+)\.(\d+)")
KINDS: dict[str, Kind] = {"F": "F", "B": "B", "W": "W"}


def parse_order(order: str | Sequence[str], grid: Grid, source: str = "order") -> tuple[Works, ...]:
    """The work of every worker, complete and in an order that its own shards allow.

    `checker.check` decides whether the workers' lists fit one another. A text has one line per worker.
    Raises PlanRefused for a text that is no such order.
    """
    lines = order.splitlines() if isinstance(order, str) else order
    if len(lines) != grid.num_workers:
        raise PlanRefused(
            f"{source} has {len(lines)} lines of work, the plan {grid.num_workers} workers: "
            'write one per worker, "" for a worker without work'
        )
    return tuple(parse_works(line, grid, rank, source) for rank, line in enumerate(lines))


@cache
def stages_split(order: tuple[str, ...]) -> frozenset[int]:
    """The stages that an order gives separate work (W) for gradients of weights."""
    return frozenset(int(match[2]) for line in order for match in TOKEN.finditer(line) if match[1] == "W")


@cache
def written_order(order: tuple[str, ...], grid: Grid, num_shards: int) -> tuple[Works, ...]:
    """The order, written for `num_shards` shards, of a step that may have fewer: work that it lacks is left out."""
    full = parse_order(order, replace(grid, num_shards=num_shards))
    if num_shards == grid.num_shards:
        return full
    own = [set(works_of(grid, rank)) for rank in range(grid.num_workers)]
    return tuple(tuple(work for work in line if work in own[rank]) for rank, line in enumerate(full))


def spell_order(works: Sequence[Works]) -> tuple[str, ...]:
    """An order as the text that `parse_order` reads."""
    return tuple(" ".join(map(str, line)) for line in works)


def parse_works(line: str, grid: Grid, rank: int, source: str) -> Works:
    expected = dict.fromkeys(works_of(grid, rank))
    found: dict[Work, int] = {}
    for position, token in enumerate(line.split()):
        where = f"{source}: worker {rank}, position {position}, {token!r}"
        work = parse_token(token, where)
        refuse_foreign_work(work, grid, rank, expected, where)
        if work in found:
            raise PlanRefused(f"{where} is there twice, first at position {found[work]}: remove one")
        for earlier in must_precede(work):
            if earlier in expected and earlier not in found:
                raise PlanRefused(
                    f"{where} comes before {earlier}: {precedence_reason(work, earlier)}; write {earlier} first"
                )
        found[work] = position
    missing = [work for work in expected if work not in found]
    if missing:
        raise PlanRefused(f"{source}: worker {rank} has no {' '.join(map(str, missing[:4]))}: add what is missing")
    return tuple(found)


def parse_token(token: str, where: str) -> Work:
    match = TOKEN.fullmatch(token)
    if match is None:
        raise PlanRefused(f"{where} is no work: write F<stage>.<set>, B<stage>.<set> or W<stage>.<set>, such as F0.1")
    return Work(KINDS[match[1]], int(match[2]), int(match[3]))


def refuse_foreign_work(work: Work, grid: Grid, rank: int, expected: dict[Work, None], where: str) -> None:
    """Refuse work that the grid does not have, or has for other workers."""
    if work in expected:
        return
    if work.stage >= len(grid.stages):
        raise PlanRefused(f"{where} names stage {work.stage}; the stages are 0 to {len(grid.stages) - 1}")
    if work.set_index >= len(grid.sets):
        raise PlanRefused(f"{where} names set {work.set_index}; the sets are 0 to {len(grid.sets) - 1}")
    group = ", ".join(map(str, grid.stages[work.stage].workers))
    if work.kind == "W" and not grid.stages[work.stage].split:
        raise PlanRefused(f"{where}: stage {work.stage} makes its weights' gradients in B; remove it")
    if rank in grid.stages[work.stage].workers:
        raise PlanRefused(f"{where}: worker {rank} has no shard of set {work.set_index} at this stage; remove it")
    raise PlanRefused(f"{where}: stage {work.stage} is worker {group}'s; move it there")


def must_precede(work: Work) -> Iterator[Work]:
    """Work that must come before, as far as this worker takes part in it."""
    if work.set_index > 0:
        yield Work(work.kind, work.stage, work.set_index - 1)
    if work.kind != "F":
        yield Work("F" if work.kind == "B" else "B", work.stage, work.set_index)


def precedence_reason(work: Work, earlier: Work) -> str:
    if work.kind != earlier.kind:
        return "a backward follows its forward" if work.kind == "B" else "weights' gradients follow their backward"
    return "a stage takes its sets in increasing order, so that gradients are added in shard order"

"""Two stages of a GPT: `python benchmarks/pipeline/run.py [QUESTION ...]` prints tables in Markdown.

The bound follows from the schedule: both stages' times for a microbatch, measured with both workers busy, are
put into the schedule that samestep runs. Only waiting for the other stage is added.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import Contender, Question, ask, contender, spread

from samestep.numerics.numerics import Numerics
from samestep.plan.plan import Plan, Stage
from samestep.schedule.actions import Action, Backward, Forward
from samestep.schedule.passes import schedule_of
from samestep.schedule.simulator import simulate

SCRIPT = Path(__file__).resolve().parent / "contender.py"
MICROBATCHES = 8
STAGES = 2

StageTimes = list[list[float]]  # per stage: forward, backward, update


def length(times: StageTimes, order: str) -> float:
    """Seconds of a step that consists of forwards, backwards and waiting for them."""
    stages = [Stage(f"stage {p}", (p,), (MICROBATCHES,)) for p in range(STAGES)]
    plan = Plan.staged(Numerics(shards=MICROBATCHES), stages, order=order)
    grid = plan.grid(MICROBATCHES, [(False,)] * STAGES)
    schedules = [schedule_of(grid, order, rank, clip=False) for rank in range(STAGES)]

    def cost(action: Action) -> float:
        if isinstance(action, Forward):
            return times[action.segment][0]
        return times[action.segment][1] if isinstance(action, Backward) else 0.0

    return max(span.stop for spans in simulate(grid, schedules, cost=cost).spans for span in spans)


def formula(times: StageTimes) -> float:
    """(m + p - 1) of the slower stage's forwards and backwards: the same when stages are equal."""
    return (MICROBATCHES + STAGES - 1) * max(forward + backward for forward, backward, _ in times)


@dataclass
class Bound(Contender):
    """Bound of a pipeline: `medians` are step times of stages that wait only for one another."""

    stages: list[StageTimes] = field(default_factory=list)  # per round

    def round(self, steps: int) -> None:
        answers = self.answer(steps)
        times = [[statistics.median(a[p][i] for a in answers) for i in range(3)] for p in range(STAGES)]
        self.stages.append(times)
        self.medians.append(length(times, self.name.split()[1]))


def make(name: str, model: str) -> Contender:
    kind, option = name.split()
    if kind == "bound":
        return Bound(name, [sys.executable, str(SCRIPT), "stages", model, str(MICROBATCHES)])
    if kind == "torch":
        return Contender(name, [sys.executable, str(SCRIPT), kind, model, option])
    return contender(name, model)


def print_stages(bound: Bound) -> None:
    """Parts of the bound."""
    rounds = bound.stages[-len(bound.medians) :]
    print("| stage | forward, ms | backward, ms | update, ms |\n|---|--:|--:|--:|")
    for p in range(STAGES):
        columns = [spread([times[p][i] for times in rounds], lambda s: f"{s * 1e3:.2f}") for i in range(3)]
        print(f"| {p} | {' | '.join(columns)} |")
    whole = spread([formula(times) for times in rounds], lambda s: f"{s * 1e3:.2f}")
    m, p = MICROBATCHES, STAGES
    print(f"\n(m + p - 1) max(F + B) = ({m} + {p} - 1) max(F + B): {whole} ms\n", flush=True)


OURS, GPIPE = [f"samestep 2:8:{order}@blocks.4" for order in ("1f1b", "gpipe")]
CONTENDERS = [OURS, GPIPE, "torch 1f1b:8", "torch gpipe:8", "bound 1f1b", "plain 1"]
PAIRS = [
    (OURS, "bound 1f1b"),
    (GPIPE, "bound 1f1b"),
    (OURS, "torch 1f1b:8"),
    (GPIPE, "torch gpipe:8"),
    ("torch 1f1b:8", "bound 1f1b"),
    (OURS, "plain 1"),
]

QUESTIONS = {
    "batch-16": Question("gpt-deep", CONTENDERS, PAIRS, 9, 4),
    "batch-32": Question("gpt-deep-32", CONTENDERS, PAIRS, 7, 3),
}


if __name__ == "__main__":
    for _, found in ask(QUESTIONS, make):
        bound = found["bound 1f1b"]
        assert isinstance(bound, Bound)
        print_stages(bound)

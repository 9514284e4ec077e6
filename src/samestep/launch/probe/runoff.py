"""Run-off of the best two plans (`--probe`): they run in turns, so that costs outside the model count too."""

import itertools

from torch import nn

from samestep.job.job import Job
from samestep.launch.probe.measure_job import median
from samestep.launch.probe.probe import Probe, probe
from samestep.planner.search.decision import Decision

TURNS, SECONDS = 3, 0.8  # of each plan; a slow one takes longer
LEAST_STEPS = 3


def run_off(job: Job, model: nn.Module, decision: Decision) -> dict[str, float]:
    """Median seconds of a step of the best two candidates, by name. Raises what a worker raised."""
    two = decision.ranking[:2]
    if len(two) < 2:
        return {}
    steps: dict[str, list[float]] = {one.name: [] for one in two}
    for turn in range(TURNS):
        for one in two if turn % 2 == 0 else reversed(two):
            steps[one.name] += steps_of(probe(job, one.plan, model, SECONDS, LEAST_STEPS))
    return {name: median(seconds) for name, seconds in steps.items()}


def steps_of(found: Probe) -> list[float]:
    """Seconds from the begin of each step to that of the next one."""
    begins: dict[int, float] = {}
    for sample in found.samples[0]:
        begins.setdefault(sample.step, sample.start)
    return [b - a for a, b in itertools.pairwise(begins.values())]

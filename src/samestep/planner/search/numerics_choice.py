"""The rule that chooses numerics for a machine from measured trials.

S is the largest number of shards, up to 8, with a time at most 5 % above the fastest: more shards allow more workers
later. Threads are those with which the chosen S is fastest. The planner finds K afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_SLOWDOWN = 1.05  # over the fastest time, for more shards
SHARDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Trial:
    """A measured way to run a step."""

    shards: int
    workers: int
    threads: int
    seconds: float  # of a step

    def __str__(self) -> str:
        way = f"{self.workers} worker{'s' * (self.workers > 1)} x {self.threads} thread{'s' * (self.threads > 1)}"
        return f"S={self.shards}, {way}: {self.seconds * 1e3:.3g} ms"


def trial_settings(batch_size: int, cores: int) -> list[tuple[int, int, int]]:
    """Shards, workers and threads of each trial: each S on one thread, on all threads, and on a worker per core."""
    found = []
    for shards in (s for s in SHARDS if s == 1 or s * 2 <= batch_size):
        found.append((shards, 1, 1))
        if cores > 1:
            found.append((shards, 1, cores))
        found += [(shards, workers, 1) for workers in {min(cores, shards)} if workers > 1]
    return found


def choose_trial(trials: Sequence[Trial]) -> Trial:
    """The trial that the rule above chooses: of the ways to run the chosen S the fastest."""
    best = {t.shards: min((o for o in trials if o.shards == t.shards), key=lambda o: o.seconds) for t in trials}
    fastest = min(trial.seconds for trial in best.values())
    return max((t for t in best.values() if t.seconds <= MOST_SLOWDOWN * fastest), key=lambda t: t.shards)


def trial_table(trials: Sequence[Trial]) -> str:
    """Each trial's time, against the fastest."""
    fastest = min(trial.seconds for trial in trials)
    return "\n".join(f"{trial}  ({trial.seconds / fastest - 1:+.0%})" for trial in trials)

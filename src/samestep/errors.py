"""The family of exceptions. Every message names both sides, the place and the way out.

SamestepError                exit code
  Refused                        2      the job, plan, cluster, command or checkpoint cannot be run
    JobRefused
    PlanRefused
    CheckpointRefused
    ClusterRefused
  TrainingFailed                 1      training failed
    LossNotFinite
    Disagreement                        workers that must agree do not
    PeerLost                            a secondary error: another worker is gone
  Interrupted                  130      stopped by the user (128 + SIGINT, as shells count)
"""


class SamestepError(Exception):
    """Root of the family. `exit_code` is what the command line returns."""

    exit_code = 1
    is_shown = False  # the user has seen it
    is_repeated = False  # another worker has reported the same; a terminal that shows all workers needs it once


class Refused(SamestepError):
    """Something the user asked for cannot be run; nothing was trained."""

    exit_code = 2


class JobRefused(Refused):
    """The job itself (model, loss, optimizer, data) cannot be run exactly."""


class PlanRefused(Refused):
    """The plan, its numerics or its assignment do not fit the job or one another."""


class CheckpointRefused(Refused):
    """A checkpoint is damaged, or belongs to another job or other numerics."""


class ClusterRefused(Refused):
    """A cluster file cannot be read, or what it describes is no cluster."""


class TrainingFailed(SamestepError):
    """Training began and could not go on."""


class LossNotFinite(TrainingFailed):
    """A shard's loss is NaN or infinite."""


class Disagreement(TrainingFailed):
    """Two workers hold different values for something that must be equal."""


class PeerLost(TrainingFailed):
    """Another worker closed its connection, or does not answer. Not the first cause of a failure."""

    def __init__(self, rank: int, peer: int, why: str = "its connection closed") -> None:
        super().__init__(rank, peer, why)
        self.rank = rank
        self.peer = peer
        self.why = why
        self.during = ""  # the action of the schedule

    def __str__(self) -> str:
        during = f" in {self.during}" if self.during else ""
        return f"worker {self.rank} lost worker {self.peer}{during}: {self.why}"


class Interrupted(SamestepError):
    """The user stopped the run."""

    exit_code = 130

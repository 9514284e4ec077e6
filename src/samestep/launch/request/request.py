"""What the command asks the leader to run, as plain values that travel as JSON."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samestep.errors import CheckpointRefused, PlanRefused, Refused
from samestep.plan.plan import PRESETS, TRANSPORTS

DEVICES = ("cpu", "cuda")
NUMBERS = ("workers", "shards", "slices", "threads", "steps", "epochs", "seed", "every", "trace_steps", "audit")

AUDIT_EVERY = 32  # steps from one audit to the next, where nobody says how many


@dataclass(frozen=True)
class Request:
    """None means: not asked for; the job, a plan or a default decides.

    A job is a function in a file, or in a module that can be imported by name. `settings` are its
    arguments: text from a command line, or values.
    """

    run: str  # names this run's temporary folders
    function: str = "job"
    file: str | None = None
    module: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    settings_are_text: bool = False
    workers: int | None = None
    default_workers: int = 1
    shards: int | None = None
    assign: tuple[int, ...] | None = None
    threads: int | None = None
    transport: str | None = None
    device: str = "cpu"
    plan: str = "auto"
    plan_is_asked: bool = False  # whether somebody named it
    probe: bool = False  # run the best two plans for a moment, and take the faster
    profile: str | None = None  # file to read what was measured from, or to keep it in
    slices: int | None = None
    plan_text: str | None = None  # of the file that `plan` names
    numerics: str | None = None
    codec: str | None = None
    sync: str | None = None
    steps: int | None = None
    epochs: int | None = None
    seed: int | None = None
    save: str | None = None
    checkpoint: str | None = None
    every: int | None = None
    resume: bool = False
    rebalance: str | None = None  # deal shards anew when speeds change; None: unless somebody has dealt them
    audit: int | None = None  # steps from one audit to the next; 0: none
    allow_nan: bool = False
    want_weights: bool = False
    trace_steps: int | None = None  # at the end, tell the last so many steps action by action
    memory_limit: int | None = None  # bytes per worker
    timeout: float = 300.0  # seconds that workers started apart wait for one another
    stall: float = 30.0  # seconds within which a run that does not go on is said to stall; 0: nobody looks
    hosts: tuple[int, ...] | None = None  # workers on each host; one host when it is None
    only_outline: bool = False  # decide, and do not train
    tune: bool = False  # choose the numerics, and do not train
    locked: str | None = None  # the numerics line of the job's lock file
    only_candidates: bool = False  # decide, and tell every plan that was considered
    cluster: str | None = None  # the text of a cluster that the plan is for
    described: bool = False  # costs from FLOPs and bytes
    simulate: tuple[int, ...] = ()  # decide for so many workers each, and do not train
    record: str | None = None  # folder for what every worker notes of its steps
    only_plain: bool = False  # note what a plain loop on the whole batch does instead
    only_profile: bool = False  # measure, and do not even decide
    folder: str = "."  # where the command was given
    path: tuple[str, ...] = ()  # where modules are looked for
    mkl: str = "default"

    def check(self) -> None:
        """Raise Refused for what can be seen without the job, so that nobody waits for it."""
        for name in NUMBERS:
            value, least = getattr(self, name), 0 if name in ("seed", "audit") else 1
            if value is not None and (type(value) is not int or value < least):
                raise Refused(f"--{name.replace('_', '-')} {value!r}: it must be a whole number of at least {least}")
        if not self.timeout > 0:
            raise Refused(f"--timeout {self.timeout!r}: it must be a number of seconds above 0")
        if not 0 <= self.stall < float("inf"):
            raise Refused(f"--stall {self.stall!r}: it must be a number of seconds, or 0 to look for no stall")
        if self.transport not in (None, *TRANSPORTS):
            raise Refused(f"--transport {self.transport!r} is not known: it is one of {', '.join(TRANSPORTS)}")
        if self.probe and (self.plan != "auto" or self.cluster is not None):
            why = f"--plan {self.plan} names one" if self.plan != "auto" else "those of --cluster are not run here"
            raise Refused(f"--probe runs the best two plans and takes the faster, and {why}: leave one of them out")
        if self.rebalance not in (None, "on", "off"):
            raise Refused(f"--rebalance {self.rebalance!r} is not known: it is on or off")
        if self.device not in DEVICES:
            raise Refused(f"--device {self.device!r} is not known: it is one of {', '.join(DEVICES)}")
        if self.device != "cpu" and self.memory_limit is not None:
            raise Refused(f"--memory-limit is for the host's memory: leave it or --device {self.device} out")
        if self.save is not None and (not Path(self.save).parent.is_dir() or Path(self.save).is_dir()):
            raise Refused(
                f"--save {self.save} cannot be written: {Path(self.save).parent} must be a folder, and FILE no folder"
            )
        if self.checkpoint is None and (self.resume or self.every is not None):
            flag = "--resume" if self.resume else "--every"
            raise CheckpointRefused(f"{flag} needs to know where the checkpoints are: add --checkpoint DIR")
        if self.checkpoint is not None:
            above = next(path for path in (Path(self.checkpoint), *Path(self.checkpoint).parents) if path.exists())
            if not above.is_dir():
                raise CheckpointRefused(f"--checkpoint {self.checkpoint}: {above} is a file; name a folder")


def audit_every(request: Request) -> int:
    """Steps from one audit to the next; 0 for none. What `verify` looks at is not audited: it names causes better."""
    if request.record is not None:
        return 0
    return AUDIT_EVERY if request.audit is None else request.audit


def plan_text(name: str, option: str = "--plan") -> str | None:
    """What the plan's file says; None for a known plan. Raises PlanRefused when it cannot be read."""
    if name in PRESETS:
        return None
    try:
        return Path(name).read_text()
    except OSError:
        raise PlanRefused(
            f"{option} {name}: neither a known plan ({', '.join(PRESETS)}) nor a file that can be read"
        ) from None
    except UnicodeDecodeError:
        raise PlanRefused(f"{option} {name} is not text; print(report.plan) shows what a plan looks like") from None

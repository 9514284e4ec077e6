"""Every option of a run, listed once.

The command line makes its options from this table, `samestep.train` takes the same names as arguments, and a
`Request` carries the values. None means: not asked for; the job, a plan or a default decides.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

from samestep.plan.plan import TRANSPORTS

DEVICES = ("cpu", "cuda")
PLAN_WORDS = "auto|data|slices|hybrid|pipeline|FILE"
AUDIT_EVERY = 32  # steps from one audit to the next by default

Int: TypeAlias = int | None
Str: TypeAlias = str | None
Counts: TypeAlias = tuple[int, ...] | None
Names: TypeAlias = tuple[str, ...] | None


class Spelling(StrEnum):
    """Value that a text stands for."""

    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True)
class Flag:
    """An option as the command line shows it."""

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    spelling: Spelling | None = None


@dataclass(frozen=True)
class JobSource:
    """Place of the job function: in a file, or in a module that can be imported by name.

    settings: its arguments, text from a command line or values. folder, path: the current folder and the places of
    modules where the request was made.
    """

    function: str = "job"
    file: str | None = None
    module: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    settings_are_text: bool = False
    folder: str = "."
    path: tuple[str, ...] = ()
    locked: str | None = None  # the numerics line of the job's lock file


@dataclass(frozen=True)
class NumericsOptions:
    """Settings that fix the bits."""

    shards: Annotated[Int, Flag("S, into how many shards a batch is cut. Part of the numbers.")] = None
    threads: Annotated[Int, Flag("Intra-op threads per worker. Part of the numbers. Default: 1.")] = None
    slices: Annotated[Int, Flag("Slices per sliced layer. Part of the numbers. Default: 4.", "K")] = None
    numerics: Annotated[Str, Flag('A line that another run printed, "seed=0 shards=4 ...".', "LINE")] = None
    codec: Annotated[Str, Flag('Compress gradients, "int8@2". Part of the numbers.', "NAME@LEVELS")] = None
    sync: Annotated[Str, Flag('When workers agree, "stale(1)", "local(16)". Part of the numbers.', "POLICY")] = None
    seed: Annotated[Int, Flag("Of everything random. Part of the numbers.")] = None
    mkl: str = "default"  # MKL's reproducibility mode


@dataclass(frozen=True)
class PlanOptions:
    """Who computes what, and how that is decided."""

    workers: Annotated[Int, Flag("Worker processes. Default: physical cores, at most the shards.")] = None
    default_workers: int = 1
    assign: Annotated[Counts, Flag("Shards per worker, for instance 5,3.", "N,N,...")] = None
    hosts: Annotated[Counts, Flag("Workers on each host, for `plan`; launchers say it themselves.", "N,N,...")] = None
    transport: Annotated[Str, Flag("Default: processes. Threads are for tests.", choices=TRANSPORTS)] = None
    device: Annotated[str, Flag("Where workers compute, one on each GPU.", choices=DEVICES)] = "cpu"
    plan: Annotated[str, Flag("Who computes what: a plan's name or file. Default: auto.", PLAN_WORDS)] = "auto"
    plan_text: str | None = None  # of the file that `plan` names
    plan_is_asked: bool = False  # whether somebody named it
    probe: Annotated[bool, Flag("Run the best two plans for a moment, and take the faster.")] = False
    profile: Annotated[Str, Flag("Where what was measured is kept.", spelling=Spelling.FILE)] = None
    memory_limit: Annotated[Int, Flag("What a worker may need at most, for instance 800MB.", "SIZE")] = None  # bytes
    rebalance: Annotated[Str, Flag("Reassign shards when workers get slower or faster.", "on|off")] = None
    cluster: str | None = None  # the text of a cluster that the plan is for
    described: bool = False  # costs from FLOPs and bytes


@dataclass(frozen=True)
class TrainingOptions:
    """How long the job trains, what is kept, and what is watched."""

    steps: Annotated[Int, Flag("Train for so many optimizer steps.")] = None
    epochs: Annotated[Int, Flag("Train for so many passes over the data.")] = None
    save: Annotated[Str, Flag("Write the weights as safetensors at the end.", spelling=Spelling.FILE)] = None
    checkpoint: Annotated[Str, Flag("Folder for checkpoints.", spelling=Spelling.FOLDER)] = None
    every: Annotated[Int, Flag("A checkpoint every N steps, not only at the end.", "N")] = None
    resume: Annotated[bool, Flag("Go on from the last checkpoint, on any number of workers.")] = False
    change: Annotated[Names, Flag("What is meant to differ from the checkpoint, lr,loss.", "NAME,...")] = None
    audit: Annotated[Int, Flag("Workers compare their states every K steps (32); 0: never.", "K")] = None
    allow_nan: Annotated[bool, Flag("Go on when a loss is NaN or infinite.")] = False
    trace_steps: Annotated[Int, Flag("Of the last N steps. Default: 20.", "N")] = None
    timeout: Annotated[float, Flag("Seconds that workers on several hosts wait for one another.")] = 300.0
    stall: Annotated[float, Flag("Say within so many seconds what holds up a run. 0: never.")] = 30.0
    want_weights: bool = False
    record: str | None = None  # folder for what every worker notes of its steps

    @property
    def audit_every(self) -> int:
        """Steps from one audit to the next; 0 for none. Recorded steps have none: `verify` names causes better."""
        if self.record is not None:
            return 0
        return AUDIT_EVERY if self.audit is None else self.audit


@dataclass(frozen=True)
class Option:
    """One option of the command line. kind: the type of its value."""

    name: str
    kind: type
    default: Any
    flag: Flag


GROUPS: Mapping[str, type] = {
    "source": JobSource,
    "numerics": NumericsOptions,
    "planning": PlanOptions,
    "training": TrainingOptions,
}
"""The groups of a request's fields, by the request's attribute."""

GROUP_OF = {one.name: group for group, kind in GROUPS.items() for one in dataclasses.fields(kind)}


def _options(group: type) -> dict[str, Option]:
    hints, found = typing.get_type_hints(group, include_extras=True), {}
    for one in dataclasses.fields(group):
        if typing.get_origin(hints[one.name]) is Annotated:
            kind, flag = typing.get_args(hints[one.name])
            kinds = [k for k in typing.get_args(kind) or (kind,) if k is not type(None)]
            found[one.name] = Option(one.name, kinds[0], one.default, flag)
    return found


OPTIONS: Mapping[str, Option] = {name: one for group in GROUPS.values() for name, one in _options(group).items()}
"""The options of the command line, by the names that Python uses."""

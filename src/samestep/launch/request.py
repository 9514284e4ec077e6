"""What the command asks the leader to run, as plain values that travel as JSON."""

from dataclasses import dataclass, field
from typing import Any


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
    plan: str = "data"
    plan_text: str | None = None  # of the file that `plan` names
    numerics: str | None = None
    steps: int | None = None
    epochs: int | None = None
    seed: int | None = None
    save: str | None = None
    checkpoint: str | None = None
    every: int | None = None
    resume: bool = False
    allow_nan: bool = False
    want_weights: bool = False
    folder: str = "."  # where the command was given
    path: tuple[str, ...] = ()  # where modules are looked for
    mkl: str = "default"

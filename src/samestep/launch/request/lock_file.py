"""The lock file beside a job: numerics that a person had tuned for a machine and wants to keep.

    digits.py                   digits.samestep.toml:   numerics = "shards=2 threads=1 slices=none"

The command line and the job come before it, the defaults after it. Free of torch.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from samestep.errors import PlanRefused
from samestep.numerics.numerics import parse_line

LOCKED = ("shards", "threads", "slices")  # numerics that are tuned


def lock_file(job: str | Path) -> Path:
    return Path(job).with_suffix(".samestep.toml")


def read_lock(job: str | Path | None) -> str | None:
    """Numerics line of the lock file beside a job's file; None without one. Raises PlanRefused."""
    if job is None or not (file := lock_file(job)).is_file():
        return None
    try:
        fields = tomllib.loads(file.read_text())
        line = fields["numerics"]
        locked(line, str(file))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise PlanRefused(
            f"{file} is no lock file ({type(error).__name__}: {error}): remove it, or write a new one with "
            "`samestep plan --tune-numerics --lock`"
        ) from None
    return str(line)


def locked(line: str | None, source: str = "the lock file") -> Mapping[str, object]:
    """Locked numerics by name. Raises PlanRefused for others than those that are tuned."""
    fields = {} if line is None else parse_line(line, source)
    if strange := sorted(set(fields) - set(LOCKED)):
        raise PlanRefused(f"{source} locks {', '.join(strange)}; it may lock {', '.join(LOCKED)}")
    return fields


def lock_text(line: str, reasons: str) -> str:
    """Content of a lock file. reasons: of the choice, for people."""
    notes = "".join(f"# {text}\n" for text in reasons.splitlines())
    head = "# Numerics tuned by samestep for one machine; other numbers of these give other bits.\n"
    return f'{head}{notes}numerics = "{line}"\n'

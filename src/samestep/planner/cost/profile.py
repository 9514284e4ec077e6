"""A profile: the chain and the costs of a job on a machine, a value that is kept in a readable file.

It holds for the numerics it was measured with (shards and threads set the size of every product), for that
machine, and for that version of torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samestep.errors import PlanRefused
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.system.json_values import value_from

FORMAT = 3


@dataclass(frozen=True)
class Conditions:
    """The conditions that a profile was measured under; where one of them differs, another profile is needed."""

    machine: str  # the processor's name, its cores, the vector instructions that torch uses
    torch: str
    threads: int
    shards: int
    precision: str
    workers: int  # measured at once
    optimizer: str  # class and implementation
    codec: str
    clip: bool  # whether gradients are clipped
    sync_batchnorm: bool
    data: str  # what kind of data set it is, and how many processes load


@dataclass(frozen=True)
class Profile:
    """The profile of one job."""

    conditions: Conditions
    chain: Chain
    costs: MeasuredCosts
    job: str = ""  # its name, for people
    of: str = ""  # the key of the surveyed chain; of the measured one, where that has less

    def text(self) -> str:
        """The file's content."""
        fields = {
            "format": FORMAT,
            "job": self.job,
            "of": self.of,
            "ground": asdict(self.conditions),
            "chain": asdict(self.chain),
            "costs": asdict(self.costs),
        }
        return json.dumps(fields, indent=1)

    @staticmethod
    def parse(text: str, source: str) -> "Profile":
        """Read a profile's text. Raises PlanRefused for a text that is no profile of this format."""
        try:
            fields = json.loads(text)
            found = fields["format"]
            if found != FORMAT:
                raise PlanRefused(f"{source} is a profile of format {found}, this version reads {FORMAT}: remove it")
            return Profile(
                Conditions(**fields["ground"]),
                value_from(Chain, fields["chain"]),
                value_from(MeasuredCosts, fields["costs"]),
                fields["job"],
                fields["of"],
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PlanRefused(
                f"{source} is no profile ({type(error).__name__}: {error}): remove it, `samestep plan` makes another"
            ) from None

    def check(self, wanted: Conditions, of: str, source: str) -> None:
        """Raises PlanRefused, with both sides, when it was measured under other conditions or for another job."""
        for name, value in asdict(wanted).items():
            own = getattr(self.conditions, name)
            if own != value:
                raise PlanRefused(
                    f"{source} was measured with {name} {own}, this run has {value}: the times would be others; "
                    "leave --profile out, or name another file, and it is measured again"
                )
        if self.of != of:
            raise PlanRefused(
                f"{source} is the profile of a job with other layers ({self.job}, {self.of}; this one is {of}): leave "
                "--profile out, or name another file, and it is measured again"
            )


def profile_key(conditions: Conditions, chain: Chain) -> str:
    """The name of a profile: the same for jobs with the same layers under the same conditions."""
    fields: Mapping[str, Any] = {"format": FORMAT, "ground": asdict(conditions), "chain": asdict(chain)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]


def read_profile(file: Path) -> Profile | None:
    """Read a profile; None where there is no file. Raises PlanRefused for one that cannot be read."""
    try:
        return Profile.parse(file.read_text(), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanRefused(f"{file} cannot be read as a profile: {error}; name another file") from None


def write_profile(profile: Profile, file: Path) -> None:
    """Write a profile, completely or not at all, readable by this user only."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(profile.text())
    temporary.replace(file)

"""The choices that fix the numbers: seed, shards, threads per shard and the numeric environment.

Nothing here is ever derived from the number of workers. The assignment (who computes what) may
change at any step; a change of the numerics is a different computation.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from samestep.errors import PlanRefused
from samestep.numerics.policy import Policy, parse_policy

DEFAULT_SHARDS = 4
MIN_ROWS_PER_SHARD = 8  # the default S falls until a shard has this many rows


@dataclass(frozen=True)
class Numerics:
    """Everything that the bits of a run depend on besides the job itself.

    The first nine are chosen; the others are found on the machine, and another run must find the same.
    """

    seed: int = 0
    shards: int = DEFAULT_SHARDS
    threads: int = 1  # intra-op threads per shard
    precision: str = "float32"
    sync_batchnorm: bool = False
    slices: str = "none"  # of sliced layers, e.g. fc1:4,fc2:4
    join: int = 0  # shards that sliced layers compute jointly; 0: all of the step
    codec: str = "none"  # on edges of the reduction tree, e.g. int8:256@2
    sync: str = "exact"  # when workers must agree, e.g. stale(1)
    optimizer: str = "unknown"  # class and implementation, e.g. SGD/fused
    torch: str = "unknown"
    isa: str = "unknown"  # vector instructions that torch's kernels use
    mkl: str = "default"  # MKL_CBWR, when set
    kernels: str = "unknown"  # fingerprint of the kernels: what counts where both sides know it

    @cached_property
    def policy(self) -> Policy | None:
        """The sync policy; None for exact."""
        return parse_policy(self.sync, "the numerics")

    @cached_property
    def slice_counts(self) -> dict[str, int]:
        """The number of slices of each sliced layer."""
        parts = () if self.slices == "none" else self.slices.split(",")
        return {layer: int(count) for layer, _, count in (part.rpartition(":") for part in parts)}

    def line(self) -> str:
        """One line that `--numerics` accepts."""
        return " ".join(f"{k}={_text(v)}" for k, v in dataclasses.asdict(self).items())


CHOSEN = ("seed", "shards", "threads", "precision", "sync_batchnorm", "join", "codec", "sync")
KNOWN_BY_KERNELS = ("isa", "mkl")
"""Names of what the fingerprint of the kernels shows by fact."""
PRECISIONS = ("float32", "bfloat16")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_line(line: str, source: str = "--numerics") -> dict[str, object]:
    """The fields named in a numerics line, typed. Raises PlanRefused for what it does not know."""
    types = {field.name: type(field.default) for field in dataclasses.fields(Numerics)}
    found: dict[str, object] = {}
    for word in line.split():
        name, equals, text = word.partition("=")
        if not equals or name not in types:
            raise PlanRefused(
                f"{source} has {word!r}, which is not one of its fields; "
                f"it takes NAME=VALUE with the names {', '.join(types)}"
            )
        found[name] = _parse(name, text, types[name], source)
    return found


def _parse(name: str, text: str, kind: type, source: str) -> object:
    if kind is bool:
        if text not in ("true", "false"):
            raise PlanRefused(f"{source} has {name}={text}; write {name}=true or {name}=false")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise PlanRefused(
            f"{source} has {name}={text}, which is no {kind.__name__}; "
            f"write for example {name}={getattr(Numerics, name)}"
        ) from None


def fingerprint_of(kernels: Mapping[str, str]) -> str:
    """One hash over those of all kinds of operation."""
    return hashlib.sha256(" ".join(f"{n}:{text}" for n, text in sorted(kernels.items())).encode()).hexdigest()[:12]


def differing_kinds(kernels: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The kinds of operation that give other bits, or that only one of both knows."""
    return [name for name in {**kernels, **others} if kernels.get(name) != others.get(name)]


def check_environment(wanted: Mapping[str, object], found: Numerics) -> None:
    """Refuse when a numerics line was made in another numeric environment than this one."""
    skipped = KNOWN_BY_KERNELS if "unknown" not in (wanted.get("kernels", "unknown"), found.kernels) else ()
    for name, value in wanted.items():
        if name not in (*CHOSEN, *skipped) and value not in (getattr(found, name), "unknown"):
            raise PlanRefused(
                f"the numerics ask for {name}={value}, this run has {name}={getattr(found, name)}: "
                f"the bits would differ; run where both agree, or leave {name} out of the numerics"
            )


def default_shards(batch_size: int) -> int:
    """S = 4, fewer when a shard would have under 8 rows."""
    return max(1, min(DEFAULT_SHARDS, batch_size // MIN_ROWS_PER_SHARD))


def num_shards_of(rows: int, shards: int) -> int:
    """How many shards a batch of `rows` rows is cut into: fewer, rather than shards of one row."""
    return max(1, min(shards, rows // 2))


def shard_rows(rows: int, num_shards: int) -> list[range]:
    """Rows of each shard: shard s takes floor(s b / S) .. floor((s+1) b / S) - 1 of b rows."""
    cuts = [s * rows // num_shards for s in range(num_shards + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def key(*parts: int | str) -> int:
    """A 32-bit key for a random stream (torch's generators use no more bits of a seed)."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")

"""Traits of a job that a checkpoint holds and that a resumed run must share, each under the name that `--change` takes.

    lr, momentum, ...   a hyperparameter, as the job makes it         data    types, shapes, hashes of rows
    schedule            its class, state, functions, next rates       model   the modules' own settings
    a setting's name    an argument of the job function               loss    the recorded shard, computed again

All values are as JSON holds them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import CheckpointRefused

Traits = dict[str, Any]
SHOWN = 4  # differences; --change names all
LENGTH = ("steps", "epochs")
UNGIVEN = "not given"
DRIVEN = ("base_lrs", "_last_lr")  # of a schedule's state: what it got from the optimizer


@dataclass(frozen=True)
class Difference:
    """One difference of a job from a checkpoint's. name: what `--change` calls it.

    matters: by itself. A setting matters by what it makes, which is compared too.
    """

    name: str
    what: str
    there: Any
    here: Any
    matters: bool = True

    def __str__(self) -> str:
        return f"its {self.what} is {brief(self.there, self.here)}, this job's is {brief(self.here, self.there)}"


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal; NaN equals itself."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def brief(value: Any, other: Any) -> str:
    """A value, or of two lists the first element that differs."""
    if isinstance(value, list) and isinstance(other, list):
        for i, item in enumerate(value):
            if i >= len(other) or item != other[i]:
                return f"{item} (item {i} of {len(value)})"
        return f"{len(value)} items"
    return str(value)


def of_hyperparameters(there: Sequence[Traits], here: Sequence[Traits]) -> Iterator[Difference]:
    """Each differing key once, with the first group that differs in it."""
    seen: set[str] = set()
    for number, (old, new) in enumerate(zip(there, here, strict=False)):
        for key in sorted({*old, *new} - {"names"}):
            name = key.removeprefix("initial_")
            if name not in seen and not same(old.get(key), new.get(key)):
                seen.add(name)
                yield Difference(name, f"{name} of parameter group {number}", old.get(key), new.get(key))


def of_schedule(there: Traits | None, here: Traits | None, ignored: Iterable[str]) -> Iterator[Difference]:
    """ignored: hyperparameters that differ by themselves, which a schedule's state repeats."""
    if there is None or here is None:
        return  # the class differs then, which is compared by itself
    ignored = set(ignored)
    for part, what in (("state", "schedule's {}"), ("reads", "schedule's value {}"), ("functions", "schedule's {}")):
        old, new = there.get(part) or {}, here.get(part) or {}
        names = {*old, *new} if part != "functions" else {*old} & {*new}
        for key in sorted(names):
            is_driven = part == "state" and ignored and (key in DRIVEN or key == "_schedulers")
            if not is_driven and not same(old.get(key), new.get(key)):
                yield Difference("schedule", what.format(key), old.get(key), new.get(key))


def of_settings(there: Traits, here: Traits, lengths: tuple[Traits, Traits]) -> Iterator[Difference]:
    """lengths: steps and epochs there and here. A setting that is one of them says how long to train, no more."""
    before, now = ([length.get(name) for name in LENGTH] for length in lengths)
    for name in sorted({*there, *here}):
        if same(there.get(name), here.get(name)) or name in LENGTH:
            continue
        if (there.get(name), here.get(name)) in zip(before, now, strict=True):
            continue
        yield Difference(name, f"setting {name}", there.get(name, UNGIVEN), here.get(name, UNGIVEN), matters=False)


def of_data(there: Traits | None, here: Traits | None) -> Iterator[Difference]:
    if there is None or here is None:
        return
    if "error" in there or "error" in here:
        if not same(there, here):
            yield Difference("data", "data", there.get("error", "loaded"), here.get("error", "loaded"))
        return
    if not same(there["columns"], here["columns"]):
        yield Difference("data", "data", there["columns"], here["columns"])
    elif there["rows"] != here["rows"]:
        yield Difference(
            "data", "data", f"rows with the hash {there['rows'][:12]}", f"rows with the hash {here['rows'][:12]}"
        )


def of_structure(there: Sequence[Sequence[str]], here: Sequence[Sequence[str]]) -> Iterator[Difference]:
    """The first module whose own settings differ, or that only one of both has. Names of classes are not compared."""
    old, new = ({name: f"{kind}({own})" for name, kind, own in modules} for modules in (there, here))
    own_there, own_here = ({name: own for name, _, own in modules} for modules in (there, here))
    for name in {**own_there, **own_here}:
        if own_there.get(name) != own_here.get(name):
            what = f"module {name}" if name else "model"
            yield Difference("model", what, old.get(name), new.get(name))
            return


def renamed(there: Sequence[Sequence[str]], here: Sequence[Sequence[str]]) -> str | None:
    """The first module of another class, as a text."""
    kinds = {name: kind for name, kind, _ in there}
    for name, kind, _ in here:
        if kinds.get(name, kind) != kind:
            return f"module {name or 'model'} is a {kinds[name]} there and a {kind} here"
    return None


def differences(there: Traits, here: Traits) -> list[Difference]:
    """All differences between what two jobs make."""
    found = list(of_hyperparameters(there["hyperparameters"], here["hyperparameters"]))
    driven = {one.name for one in found}
    found += of_schedule(there["schedule"], here["schedule"], driven)
    found += of_settings(there["settings"], here["settings"], (there["length"], here["length"]))
    found += of_data(there["data"], here["data"])
    found += of_structure(there["structure"], here["structure"])
    return found


def spelled(name: str) -> str:
    """A name as `--change` takes it."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def not_meant(found: Iterable[Difference], change: Iterable[str]) -> list[Difference]:
    """The differences that `change` does not name. What the shard gives depends on model and data too."""
    meant = {spelled(name) for name in change}
    if meant & {"model", "data"}:
        meant.add("loss")
    return [one for one in found if spelled(one.name) not in meant]


def refuse(found: Sequence[Difference], folder: Path) -> list[str]:
    """Raises CheckpointRefused, naming the first differences and the way on, if one matters; else returns warnings."""
    if any(one.matters for one in found):
        names = ",".join(dict.fromkeys(spelled(one.name) for one in found))
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckpointRefused(
            f"checkpoint {folder} is of another job: {'; '.join(map(str, found[:SHOWN]))}{more}: "
            f"resume with the job that wrote it, use another --checkpoint folder, or add --change {names} if that is "
            "meant"
        )
    return [f"the job is not quite the checkpoint's: {one}; what it makes and does is the same" for one in found]


def check_names(change: Iterable[str], known: Iterable[Mapping[str, Any] | Iterable[str]]) -> None:
    """Raises CheckpointRefused for a name that nothing of the job has."""
    names = {spelled(name.removeprefix("initial_")) for some in known for name in some}
    for name in change:
        if spelled(name) not in names:
            raise CheckpointRefused(
                f"--change {name}: the job has nothing of that name; it takes {', '.join(sorted(names))}"
            )

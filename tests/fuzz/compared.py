"""A made-up network under cut plans, held against the uncut model."""

import random
import re
import traceback
from dataclasses import dataclass, field, replace

import torch

from fuzz.in_process import Told, trained
from fuzz.made_up import SHARDS, Design, Network, designed
from models.plain import difference, distance, plain_run
from samestep.errors import SamestepError
from samestep.job.report import Report
from samestep.plan.plan import Plan, Stage

CLOSE, SAFETY = 1e-4, 16.0  # relative; times the distance that rounding makes


@dataclass
class Findings:
    """What the plans did with a network. kinds: by plan: ok, refused, refused late, wrong, raised."""

    seed: int
    kinds: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        return {plan: self.texts[plan] for plan, kind in self.kinds.items() if kind in ("wrong", "raised")}


def compared(seed: int, *, thoroughly: bool = True) -> Findings:
    """Train one network uncut, as a pipeline of the preset and with drawn cuts, and in slices on one and two workers.

    Unless thoroughly, with one of the pipelines, and in slices on two workers only.
    """
    torch.set_num_threads(1)
    design, found = designed(seed), Findings(seed)
    try:
        plain = plain_run(design.job())
    except Exception as error:  # noqa: BLE001 - what torch itself does not train
        found.kinds["plain"], found.texts["plain"] = "no network", repr(error)
        return found
    data = _run(found, "data", design, "data", 1)
    if data is None:
        return found
    if (off := difference(data.losses, plain.losses)) > CLOSE or distance(data.state_dict(), plain) > 10 * CLOSE:
        found.kinds["data"], found.texts["data"] = "wrong", f"losses {off:.1e} off the plain loop"
    if thoroughly or seed % 2:
        _expect_same(found, "pipeline", _run(found, "pipeline", design, "pipeline", 2), data)
    if thoroughly or not seed % 2:
        _expect_same(found, "cuts", _run(found, "cuts", design, drawn_plan(design, data), None), data)
    still = _run(found, "data without dropout", design, "data", 1, calm=True) if design.drops else data
    counts = (2, 1) if thoroughly else (2,)
    sliced = [_run(found, f"slices {workers}", design, "slices", workers, calm=True) for workers in counts]
    if still is None or sliced[0] is None:
        return found
    off = difference(sliced[0].losses, still.losses)
    if off > max(CLOSE, SAFETY * difference(plain_run(design.job(calm=True), moved=1).losses, still.losses)):
        found.kinds["slices 2"], found.texts["slices 2"] = "wrong", f"losses {off:.1e} off"
    if thoroughly:
        _expect_same(found, "slices 1", sliced[1], sliced[0])
    return found


def drawn_plan(design: Design, data: Report) -> Plan:
    """Two or three stages that begin at drawn blocks or layers, in one of the orders."""
    draw = random.Random(design.seed)
    names = [name for name, _ in Network(design).named_modules() if re.fullmatch(r"blocks\.\d+(\.layers\.\w+)?", name)]
    starts = sorted(draw.sample(names, min(len(names), draw.randint(1, 2))), key=names.index)
    stages = [Stage(first, (i,), (SHARDS,), recompute=draw.random() < 0.2) for i, first in enumerate(["", *starts])]
    numerics = Plan.parse(data.plan).numerics
    order = draw.choice(["1f1b", "gpipe", "zero-bubble"])
    return Plan.staged(replace(numerics, slices="none"), stages, "threads", order=order)


def _run(
    found: Findings, what: str, design: Design, plan: Plan | str, workers: int | None, *, calm: bool = False
) -> Report | None:
    told = Told()
    found.kinds[what], found.texts[what] = "ok", ""
    try:
        return trained(design.job(calm=calm), plan, workers, told)
    except SamestepError as error:
        late, foreign = told.step > 0, getattr(error, "traceback", "")
        found.kinds[what] = "raised" if foreign else "refused late" if late else "refused"
        found.texts[what] = f"{error}\n{foreign}" if foreign else str(error)
    except Exception as error:  # noqa: BLE001 - anything that is not ours is what is looked for
        found.kinds[what], found.texts[what] = "raised", f"{error!r}\n{traceback.format_exc()}"
    return None


def _expect_same(found: Findings, what: str, report: Report | None, wanted: Report) -> None:
    if report is not None and (report.digest != wanted.digest or list(report.losses) != list(wanted.losses)):
        found.kinds[what] = "wrong"
        found.texts[what] = f"losses {[*report.losses]}, not {[*wanted.losses]}"

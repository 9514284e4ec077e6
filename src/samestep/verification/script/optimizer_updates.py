"""The optimizer's update from gradients that are right: the clip norm, settings, moments, parameters and buffers.

Moments and parameters count as different above 1e-4 at least, a bound that is chosen: an optimizer that divides by the
root of a second moment makes more of rounding than the perturbed run shows.
"""

from collections.abc import Sequence

import torch

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import Key, Step, relative_distance
from samestep.verification.script.step_records import StepRecords

CHOSEN = {"optimizer state": 1e-4, "parameter": 1e-4, "buffer": 0.0}  # relative distances below it never count
TINY = 1e-7  # nor do elements below it
UNCHANGED = "unchanged "  # before the name of a parameter that a step left as it was
CAUSES = {"optimizer state": Cause.OPTIMIZER_STATE, "parameter": Cause.STALE_WEIGHTS, "buffer": Cause.BUFFERS}


def judge_membership(view: StepRecords) -> Finding | None:
    """Parameters that the optimizer does not hold, while it holds others that no module has."""
    missing = view.workers.get(Key("setting", "not in the optimizer"), ())
    strange = view.workers.get(Key("setting", "not in the model"), ())
    for one, other in zip(missing, strange, strict=False):
        if one.text and other.text != "0":
            names = one.text.split("\n")
            why = f"the optimizer holds {other.text} parameters that the model has not, and not {len(names)} of its own"
            return Finding(Cause.STALE_WEIGHTS, view.step, "parameter", names[0], why, worker=one.rank)
    return None


def judge_clip(view: StepRecords) -> Finding | None:
    key = Key("clip norm", "norm")
    if key not in view.workers or key not in view.reference:
        return None
    wanted = float(view.reference[key][0].values[0])
    bound = max([*view.bounds("gradient").values(), *view.bounds("clip norm").values()])
    for noted in view.workers[key]:
        found = float(noted.values[0])
        if abs(found - wanted) > bound * abs(wanted):
            why = f"worker {noted.rank} clips by norm {found:.6g}, one process by {wanted:.6g}"
            return Finding(Cause.CLIPPING, view.step, "clip norm", "norm", why, worker=noted.rank)
    return None


def judge_settings(view: StepRecords, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    """Compare the optimizer's settings with one process's, and with those before another optimizer object took over."""
    found = fresh_optimizer(view, earlier) if earlier else None
    if found is not None:
        return found
    for key, each in view.workers.items():
        wanted = view.reference.get(key)
        if not is_of_group(key) or not wanted:
            continue
        for noted in each:
            if not torch.equal(noted.values, wanted[0].values):
                why = f"worker {noted.rank} has {float(noted.values):g}, one process {float(wanted[0].values):g}"
                return Finding(Cause.OPTIMIZER_STATE, view.step, "setting", key.name, why, worker=noted.rank)
    return None


def fresh_optimizer(view: StepRecords, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    """Another optimizer object took over, without the moments or the settings of the last."""
    before, now, first = earlier[-1][1], view.workers, earlier[0][1]
    if setting_value(now, "optimizer") in {setting_value(step, "optimizer") for _, step in earlier}:
        return None
    had = [key for key in before if key.kind == "optimizer state"]
    if had and setting_value(now, "states before") == 0:
        why = f"a new optimizer begins without the state that the one of step {earlier[-1][0]} had"
        return Finding(Cause.OPTIMIZER_STATE, view.step, "optimizer state", had[0].name, why)
    for name in (key.name for key in now if is_of_group(key)):
        if setting_value(before, name) != setting_value(now, name) == setting_value(first, name):
            then = f"as at the start, not on from {setting_value(before, name):g}"
            why = f"a new optimizer begins with {setting_value(now, name):g} {then}"
            return Finding(Cause.OPTIMIZER_STATE, view.step, "setting", name, why)
    return None


def is_of_group(key: Key) -> bool:
    """Whether a key is a number in one of the optimizer's groups of parameters, such as "lr of group 0"."""
    return key.kind == "setting" and " of group " in key.name


def setting_value(step: Step, setting: str) -> float | None:
    noted = step.get(Key("setting", setting))
    return float(noted[0].values[0]) if noted and noted[0].values.numel() else None


def judge_unchanged(view: StepRecords) -> Finding | None:
    """A step that leaves every parameter as it was, though it has a learning rate and gradients."""
    parameters = {key.name: each for key, each in view.workers.items() if key.kind == "parameter"}
    unchanged = {name.removeprefix(UNCHANGED): parameters[name] for name in parameters if name.startswith(UNCHANGED)}
    count = len(parameters) - len(unchanged)
    if len(unchanged) != count or not setting_value(view.workers, "lr of group 0"):
        return None
    gradients = view.per_rank("gradient")
    for name, each in unchanged.items():
        has = [n.rank for n in each if float(gradients[n.rank].get(name, torch.zeros(1)).norm()) > 0]
        if has:
            why = f"no parameter of the {count} is changed by the step, though gradients are not zero"
            return Finding(Cause.STALE_WEIGHTS, view.step, "parameter", name, why, worker=has[0])
    return None


def judge_state(view: StepRecords) -> Finding | None:
    """Compare moments, parameters and buffers after the step, in this order."""
    for kind, cause in CAUSES.items():
        wanted, bounds = view.on_one_process(kind), view.bounds(kind)
        for key, each in view.workers.items():
            if key.kind != kind or key.name not in wanted or wanted[key.name].shape != each[0].values.shape:
                continue
            for noted in each:
                distance = relative_distance([noted.values], [wanted[key.name]])
                largest = float((noted.values - wanted[key.name]).abs().max()) if distance else 0.0
                if distance > max(bounds[key.name], CHOSEN[kind]) and not largest < TINY:
                    cause = Cause.BATCHNORM if key.name.rsplit(".", 1)[0] in view.batchnorms() else cause
                    why = f"worker {noted.rank}'s is {distance:.2g} from one process's, from gradients that are right"
                    return Finding(cause, view.step, kind, key.name, why, None, noted.rank, distance)
    return None

"""Assumptions that a job breaks on purpose: each is found before the first update, or at the step at which it breaks.

Every message names the place and the way out.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import samestep
from fuzz.in_process import Told, trained
from jobs_bad.breakages import JOBS, job, resumed
from samestep.errors import SamestepError
from samestep.plan.plan import Plan, Stage

SHARDS = 4
PIPELINE, SLICES, DATA = "pipeline", "slices", "data"
AGAIN = r"when it runs again on the same shard.*keep it in a buffer"
EARLIER = r"at breakages.py:\d+\) uses mean, a tensor that an earlier batch left there.*make it a buffer"
LEFT = "uses at breakages.py.* a tensor that it is not given.*hand it over"

FOUND: list[tuple[str, str, str, int]] = [
    # the job, the plan, what is said, and the step at which it is
    ("python's random numbers", PIPELINE, r"moves a random generator .*breakages.py:\d+.* draw with torch.rand", 0),
    ("python's random numbers", SLICES, r"moves a random generator .*breakages.py:\d+.* draw with torch.rand", 0),
    ("numpy's random numbers", PIPELINE, r"moves a random generator .*breakages.py:\d+.* draw with torch.rand", 0),
    ("a seed from entropy", PIPELINE, r"moves a random generator .*breakages.py:\d+.* draw with torch.rand", 0),
    ("a generator of its own", DATA, f"{AGAIN}.*draw from torch's default generator", 0),
    ("a generator of its own", PIPELINE, r"rand \(called at breakages.py:\d+\) is given a Generator.*cut elsewhere", 0),
    ("the clock", DATA, AGAIN, 0),
    ("a counter of calls", DATA, AGAIN, 0),
    ("a counter of calls", PIPELINE, "runs again|calls = .* after forward", 0),
    ("a global counter", DATA, AGAIN, 0),
    ("a value remembered", DATA, AGAIN, 0),
    ("a value remembered", PIPELINE, EARLIER, 0),
    ("a value remembered", SLICES, EARLIER, 0),
    ("a list that grows", DATA, AGAIN, 0),
    ("a graph kept", DATA, AGAIN, 0),
    ("numpy in between", PIPELINE, r"hands a tensor to NumPy at breakages.py:\d+.*compute it with torch", 0),
    ("a hook on a tensor", SLICES, r"hooks into the gradient of a tensor at breakages.py:\d+.*module of its own", 0),
    ("a gradient retained", PIPELINE, r"hooks into the gradient of a tensor at breakages.py:\d+.*module of its own", 0),
    ("autocast", PIPELINE, r"switches autocast before a \(at breakages.py:\d+\).*precision=\"bfloat16\"", 0),
    ("a reentrant checkpoint", PIPELINE, r"calls a inside an autograd Function at breakages.py:\d+.*leave it out", 0),
    ("other weights", SLICES, r"calls c at breakages.py:\d+ with another tensor in place of its parameter weight", 0),
    ("stages by value", SLICES, "takes another way through the layers.*use --plan data", 0),
    ("a slice without gradient", SLICES, "nothing in the loss depends on what layer d makes.*leave it whole", 0),
    ("forward writes a weight", DATA, f"changed parameter a.bias.*in the optimizer|{AGAIN}", 0),
    ("forward writes a weight", SLICES, f"changed parameter a.bias.*in the optimizer|{AGAIN}", 0),
    ("forward makes a layer", PIPELINE, LEFT, 0),
    ("forward replaces a parameter", DATA, "replaced the parameter a.bias.*make all parameters in the function", 0),
    ("forward replaces a parameter", PIPELINE, LEFT, 0),
    ("a buffer that grows", DATA, r"changed buffer seen from torch.float32 \(0,\) to .*keep its shape", 0),
    ("whole numbers that differ", DATA, "integer buffer positive ends differently.*keep it out of the buffers", 0),
    ("frozen by a callback", DATA, "requires_grad of parameter a.weight was True.*let Job.model set it", 3),
    (
        "a group added later",
        DATA,
        r"add_param_group was called at breakages.py:\d+.*make all groups in Job.optimizer",
        2,
    ),
    ("a rate of one worker", DATA, "lr of .*group 0 is 0.1 on worker 0 and 0.01 on worker 1.*scheduler", 3),
    ("a rate of one worker", PIPELINE, "lr of .*group 0 is 0.1 on worker 0 and 0.01 on worker 1.*scheduler", 3),
    ("a scheduler without state", DATA, "WithoutState without state_dict.*derive it from", 0),
    ("a function in a group", DATA, "'note' in parameter group 0.*keep numbers", 1),
    ("an optimizer of a norm", DATA, "GlobalNorm looks at several parameters together.*--workers 1", 0),
    ("an optimizer of a norm", SLICES, "GlobalNorm (looks at several|may treat).*", 0),
    ("a parameter of complex128", DATA, "phase in .* is torch.complex128.*view_as_real", 1),
    ("rows with their own noise", DATA, "made twice from the same row and differs.*Noisy.*generator", 0),
    ("rows that wear", PIPELINE, "made twice from the same row and differs.*Worn", 0),
    ("rows of the clock", DATA, "made twice from the same row and differs.*Clocked", 0),
    ("a detached loss", DATA, "loss of shard 0 does not depend on any trainable parameter.*without .detach", 0),
    ("a loss per row", DATA, r"loss is a tensor of shape \(2,\).*reduction='mean'", 0),
    ("a loss per row", SLICES, r"loss is a tensor of shape \(2,\).*reduction='mean'", 0),
    ("a loss that is no number", DATA, "loss of shard 0 is nan", 0),
]

STAGES: list[tuple[str, list[str], str]] = [
    # the job, where its stages after the first begin, and what is said
    ("a weight on both sides", ["c"], r"parameter a.weight is used in stages 0 and 1 \(at breakages.py.*cut so that"),
    ("stages out of order", ["a", "c"], r"reaches c before a|begins only \d of 3 stages"),
    ("no_grad over the cut", ["b"], r"torch.no_grad\(\) begun at breakages.py:\d+ reaches over a cut: end it before"),
    ("a buffer that grows", ["nowhere"], "stage 1 begins at 'nowhere', and the model has no such layer"),
]

CHANGES: dict[str, tuple[Callable[[], samestep.Job], str]] = {
    "the learning rate": (lambda: resumed(rate=0.2), "lr"),
    "the dropout": (lambda: resumed(dropout=0.5), "loss"),
    "the loss": (lambda: resumed(smoothing=0.1), "loss"),
    "the data": (lambda: resumed(data=1), "data"),
    "the width": (lambda: resumed(width=12), "weight"),
    "the schedule": (lambda: resumed(power=0.5), "schedule"),
}

pytestmark = pytest.mark.usefixtures("one_thread")  # workers are threads of this process


def message_of(made: samestep.Job, plan: Plan | str, step: int, **options: object) -> str:
    told = Told()
    with pytest.raises(SamestepError) as error:
        trained(made, plan, None if isinstance(plan, Plan) else 2, told, **options)
    assert not getattr(error.value, "traceback", ""), error.value.traceback
    assert told.step <= step, f"found at step {told.step} only"
    return str(error.value)


@pytest.mark.parametrize(("name", "plan", "said", "step"), FOUND, ids=lambda value: str(value)[:24])
def test_a_broken_assumption_is_found_and_said(name: str, plan: str, said: str, step: int) -> None:
    assert re.search(said, text := message_of(JOBS[name](), plan, step), re.DOTALL), text


@pytest.mark.parametrize(("name", "starts", "said"), STAGES, ids=lambda value: str(value)[:24])
def test_a_cut_that_cannot_be_is_refused_with_its_place(name: str, starts: list[str], said: str) -> None:
    numerics = Plan.parse(trained(job(), "data", 1, Told()).plan).numerics
    stages = [Stage(first, (i,), (SHARDS,)) for i, first in enumerate(["", *starts])]
    plan = Plan.staged(replace(numerics, slices="none"), stages, "threads")
    assert re.search(said, text := message_of(JOBS[name](), plan, 0), re.DOTALL), text


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_when_a_run_is_resumed_is_refused_with_both_sides(change: str, tmp_path: Path) -> None:
    trained(resumed(), "data", 2, Told(), checkpoint=str(tmp_path), every=2)
    trained(resumed(), "data", 2, Told(), checkpoint=str(tmp_path), resume=True, steps=6)
    made, said = CHANGES[change]
    text = message_of(made(), "data", 6, checkpoint=str(tmp_path), resume=True, steps=8)
    assert said in text, text


def test_forty_assumptions_are_broken() -> None:
    assert len({name for name, *_ in FOUND} | {name for name, *_ in STAGES}) + len(CHANGES) >= 40

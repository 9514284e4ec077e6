"""What a run began with stays what it is, whoever changes it: found at that step, with the name and the way out."""

from pathlib import Path

import pytest
import torch

import samestep
from samestep.errors import Refused
from samestep.launch.run.launcher import Launcher

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "switching.py"

CHANGES = {
    "freeze": r"requires_grad of parameter 0\.weight was True when the run began and was set to False between steps",
    "thaw": r"requires_grad of parameter 0\.bias was False when the run began and was set to True between steps",
    "group": r"add_param_group was called at switching\.py:\d+.*make all groups in Job\.optimizer",
    "appended": r"the optimizer began with 1 parameter group of \d parameters and has 2 parameter groups",
    "rate": r"step 3: lr of the optimizer's parameter group 0 is 0\.01 on worker 0 and 0\.1 on worker 1",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_a_callback_is_found_at_that_step(change: str, launcher: Launcher) -> None:
    with pytest.raises(Refused, match=CHANGES[change]):
        samestep.train(f"{JOBS}:job", workers=2, plan="data", settings={"change": change}, launcher=launcher)


@pytest.mark.parametrize("workers", [1, 2])
def test_layers_in_eval_mode_stay_there(workers: int, launcher: Launcher) -> None:
    report = samestep.train(f"{JOBS}:frozen_layers", workers=workers, plan="data", launcher=launcher)
    state = report.state_dict()
    assert torch.equal(state["norm.running_mean"], torch.zeros(8))
    assert state["norm.num_batches_tracked"] == 0

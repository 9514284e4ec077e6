"""Transforms of torch that run the code inside of them in a way of their own, and that a record does not see."""

import torch
from torch.autograd import forward_ad


def transform_running() -> str:
    """Name of the transform inside of which this runs: torch.func's or forward-mode AD; empty where there is none."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func"
    return "forward-mode AD" if forward_ad._current_level >= 0 else ""

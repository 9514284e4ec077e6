"""Reasons why parameters have no gradient, seen in the steps after the first one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

FEW = 5  # names that are shown


class Unused:
    """Looks whether the modules of parameters without gradient are called, and whether gradients are recorded there."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._recorded: dict[str, set[bool]] = {}  # by module: whether gradients were recorded in its calls
        self._handles: list[Any] = []
        modules = dict(model.named_modules())
        if any(type(module).__name__ == "OptimizedModule" for module in modules.values()):
            return  # a hook would have it compiled again
        for owner in {_owner(name) for name in names} & set(modules):
            self._handles.append(modules[owner].register_forward_pre_hook(self._seeing(owner)))

    def _seeing(self, owner: str) -> Any:
        def see(module: nn.Module, inputs: Any) -> None:
            self._recorded.setdefault(owner, set()).add(torch.is_grad_enabled())

        return see

    def end(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def warning(self, names: Sequence[str]) -> str:
        """A text that names parameters without gradient, with the reason that holds for the first one."""
        few = ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
        return f"no gradient so far for {few}: {self._reason(names[0])}, so the optimizer skips it"

    def _reason(self, name: str) -> str:
        recorded = self._recorded.get(_owner(name))
        if recorded is None:
            return "forward does not use it"
        if recorded == {False}:
            return (
                "its module is called where no gradients are recorded, under torch.no_grad or in a checkpoint with "
                "use_reentrant=True whose inputs need no gradient (give it use_reentrant=False)"
            )
        return "its module is called, and the loss does not depend on it"


def _owner(name: str) -> str:
    return name.rpartition(".")[0]

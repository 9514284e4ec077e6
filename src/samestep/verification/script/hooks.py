"""Hooks in torch that write a record of every optimizer step of a user's script.

    forward of the outermost module     rows, one hash each                 micro-batch 0, 1, ...
    backward                            loss; gradients of this process's own rows, by parameter
    clip_grad_norm_                     gradients before it, and the norm
    GradScaler.step                     forgets what was noted, where it leaves the step out
    Optimizer.step                      gradients, if no clip noted them; afterwards parameters, buffers, moments
    torch.distributed.*                 a line per collective: collective_log.py
    loaders and samplers                batch sizes and passes: data_hooks.py

A hook changes no number, with two exceptions that the verdict names: dropout is left out (its masks cannot
be the same on another number of processes), and a loader with a DistributedSampler gets, on one process, the batch
size that the workers' loaders have together.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizers

from samestep.verification.record import Key, RecordWriter, digest_of
from samestep.verification.script.collective_log import CollectiveLog
from samestep.verification.script.data_hooks import DataHooks

BEYOND = 200  # steps that run without a record, to observe a second pass over the data


class ScriptHooks:
    """The hooks of one process, and the record that they write."""

    def __init__(
        self, folder: Path, rank: int, script: Path, steps: int, sizes: Sequence[int] | None, perturbed: bool
    ) -> None:
        self._folder, self._rank, self._script, self._steps = folder, rank, script, steps
        self._perturbed = perturbed
        self._recorder = RecordWriter(folder, rank)
        self._step = 0
        self._depth = 0
        self._micro = -1
        self._roots: list[nn.Module] = []
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # keeps parameters alive, so that no id is used again
        self._gradients_noted = False
        self._before: dict[str, Tensor] = {}
        self._optimizers: list[Any] = []
        self._facts: dict[str, Any] = {"dropout": False, "batchnorm": [], "left out": 0}
        self._data = DataHooks(sizes, steps, lambda: self._step)
        self._collectives = CollectiveLog(folder, rank, script, lambda: self._step, self._named)

    def install(self) -> None:
        global_hooks.register_module_forward_pre_hook(self._enter_module)
        global_hooks.register_module_forward_hook(self._leave_module, always_call=True)
        optimizers.register_optimizer_step_pre_hook(self._before_step)
        optimizers.register_optimizer_step_post_hook(self._after_step)
        self._watch_backward()
        self._watch_clipping()
        self._watch_scaling()
        self._watch_dropout()
        self._data.install()
        self._collectives.install()

    def finish(self) -> None:
        path = self._folder / f"facts-{self._rank}.json"
        path.write_text(json.dumps({**self._facts, **self._data.facts, "steps": self._step}))

    # the forward

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._depth += 1
        training = module.training and torch.is_grad_enabled()
        if training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            self._see_batchnorm(module)
        if self._depth > 1 or not training or next(module.parameters(), None) is None:
            return
        self._see_root(module)
        if self._step >= self._steps:
            return
        tensors = [t for t in inputs if isinstance(t, Tensor) and t.dim() > 0 and not t.requires_grad]
        tensors = [t for t in tensors if len(t) == len(tensors[0])]
        if tensors:
            self._micro += 1
            self._recorder.note(Key("rows", "batch", self._micro), " ".join(row_hashes(tensors)))

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._depth -= 1

    def _see_batchnorm(self, module: nn.Module) -> None:
        if isinstance(module, nn.SyncBatchNorm):
            return
        found = [plain(name) for root in self._roots for name, part in root.named_modules() if part is module]
        if found and found[0] not in self._facts["batchnorm"]:
            self._facts["batchnorm"].append(found[0])

    def _see_root(self, module: nn.Module) -> None:
        new = [(name, p) for name, p in module.named_parameters() if id(p) not in self._names]
        if not any(root is module for root in self._roots):
            self._roots.append(module)
        for name, parameter in new:
            self._names[id(parameter)] = plain(name)
            self._kept.append(parameter)
            if self._perturbed:
                perturb(parameter)
            if parameter.requires_grad:
                parameter.register_hook(self._gradient_hook(plain(name)))  # type: ignore[no-untyped-call]

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            if self._step < self._steps and not is_sharded(gradient):
                self._recorder.note(Key("local gradient", name, max(self._micro, 0)), gradient)

        return note

    def _watch_dropout(self) -> None:
        def no_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002  as torch names it
            if training and p > 0 and not self._facts["dropout"]:
                self._facts["dropout"] = True
                self._facts["stream"] = digest_of(torch.get_rng_state().numpy().tobytes())
            return input

        nn.functional.dropout = no_dropout

    # the backward, and changes to gradients

    def _watch_backward(self) -> None:
        inner = Tensor.backward

        def backward(tensor: Tensor, *arguments: Any, **options: Any) -> None:
            if self._step < self._steps and tensor.numel() == 1:
                self._recorder.note(Key("loss", "loss", max(self._micro, 0)), float(tensor.detach()))
            inner(tensor, *arguments, **options)  # type: ignore[no-untyped-call]

        Tensor.backward = backward  # type: ignore[method-assign, assignment]

    def _watch_clipping(self) -> None:
        inner = nn.utils.clip_grad_norm_

        def clip_grad_norm_(*arguments: Any, **options: Any) -> Tensor:
            self._note_gradients()
            norm = inner(*arguments, **options)
            if self._step < self._steps:
                self._recorder.note(Key("clip norm", "norm"), whole(norm))
            return norm

        nn.utils.clip_grad_norm_ = clip_grad_norm_
        nn.utils.clip_grad.clip_grad_norm_ = clip_grad_norm_

    def _watch_scaling(self) -> None:
        """Forget a step that a GradScaler leaves out for an overflow: it is no step of the training."""
        inner = torch.amp.GradScaler.step

        def step(scaler: Any, optimizer: Any, *arguments: Any, **options: Any) -> Any:
            before = self._step
            found = inner(scaler, optimizer, *arguments, **options)
            if self._step == before:
                self._recorder.forget()
                self._micro, self._gradients_noted = -1, False
                self._facts["left out"] += 1
            return found

        torch.amp.GradScaler.step = step  # type: ignore[method-assign, assignment]

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of all models that ran forward, with their names there."""
        seen: set[int] = set()
        for root in self._roots:
            for name, parameter in root.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield plain(name), parameter

    def _note_gradients(self) -> None:
        if self._gradients_noted or self._step >= self._steps:
            return
        self._gradients_noted = True
        for name, parameter in self._named():
            if parameter.grad is not None:
                self._recorder.note(Key("gradient", name), whole(parameter.grad))

    # the update

    def _before_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if self._step >= self._steps:
            return
        self._note_gradients()
        self._before = {name: whole(parameter).clone() for name, parameter in self._named()}
        if not any(known is optimizer for known in self._optimizers):
            self._optimizers.append(optimizer)
        self._recorder.note(Key("setting", "optimizer"), float(self._optimizers.index(optimizer)))
        self._recorder.note(Key("setting", "states before"), float(len(optimizer.state)))
        for number, group in enumerate(optimizer.param_groups):
            for setting, value in group.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._recorder.note(Key("setting", f"{setting} of group {number}"), float(value))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self._named() if p.requires_grad and id(p) not in held]
        known = {id(p) for _, p in self._named()}
        self._recorder.note(Key("setting", "not in the optimizer"), "\n".join(missing))
        self._recorder.note(Key("setting", "not in the model"), str(len(held - known)))

    def _after_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if self._step < self._steps:
            self._note_update(optimizer)
            self._recorder.end_step(self._step)
        self._step += 1
        self._micro, self._gradients_noted = -1, False
        if self._step >= self._steps + (BEYOND if self._data.shuffles else 0):
            raise SystemExit(0)

    def _note_update(self, optimizer: Any) -> None:
        for name, parameter in self._named():
            now = whole(parameter)
            self._recorder.note(Key("parameter", name), now)
            before = self._before.get(name)
            if before is not None and torch.equal(before, now):
                self._recorder.note(Key("parameter", f"unchanged {name}"), "unchanged")
            for part, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    self._recorder.note(Key("optimizer state", f"{name}.{part}"), whole(value))
        for root in self._roots:
            for name, buffer in root.named_buffers():
                self._recorder.note(Key("buffer", plain(name)), whole(buffer))


def row_hashes(tensors: Sequence[Tensor]) -> list[str]:
    rows = []
    arrays = [tensor.detach().cpu().contiguous().reshape(len(tensor), -1) for tensor in tensors]
    for row in range(len(arrays[0])):
        parts = [array[row].view(torch.uint8).numpy().tobytes() for array in arrays]
        rows.append(hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest())
    return rows


def perturb(parameter: Tensor) -> None:
    """Move every element by one unit in the last place, up or down, the same way in every run."""
    with torch.no_grad():
        local = parameter.to_local() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]
        signs = torch.randint(0, 2, local.shape, generator=torch.Generator().manual_seed(local.numel()))
        limits = torch.where(signs.bool(), torch.inf, -torch.inf).to(local.dtype)
        local.copy_(torch.nextafter(local, limits))


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    found = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found.detach()


def plain(name: str) -> str:
    """The model's own name of a parameter, without the prefixes of wrappers."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))

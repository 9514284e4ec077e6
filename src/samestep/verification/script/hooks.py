"""What is put into torch before a user's script runs: hooks that write a record of every optimizer step.

    forward of the outermost module     rows, one hash each                 micro-batch 0, 1, ...
    backward                            loss; gradients of this process's own rows, by parameter
    clip_grad_norm_                     gradients before it, and the norm
    GradScaler.step                     forgets what was noted, where it leaves the step out
    Optimizer.step                      gradients, if no clip noted them; afterwards parameters, buffers, moments
    torch.distributed.*                 a line per collective, written before it is entered

A hook never changes a number, with two exceptions that are said in the verdict: dropout is left out (its masks cannot
be the same on another number of processes), and a loader with a DistributedSampler gets, on one process, the batch
size that the workers' loaders have together.
"""

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader, DistributedSampler

from samestep.verification.record import Key, RecordWriter, digest_of

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "all_gather_into_tensor",
    "gather",
    "scatter",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all",
    "all_to_all_single",
    "all_gather_object",
    "broadcast_object_list",
    "barrier",
    "send",
    "recv",
    "isend",
    "irecv",
)
BEYOND = 200  # steps that are run without a record, to see a second pass over the data


class ScriptHooks:
    def __init__(
        self, folder: Path, rank: int, script: Path, steps: int, sizes: Sequence[int] | None, perturbed: bool
    ) -> None:
        self._folder, self._rank, self._script, self._steps = folder, rank, script, steps
        self._sizes, self._perturbed = sizes, perturbed
        self._recorder = RecordWriter(folder, rank)
        self._log = (folder / f"collectives-{rank}.jsonl").open("w", buffering=1)
        self._step = 0
        self._depth = 0
        self._micro = -1
        self._roots: list[nn.Module] = []
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # so that no id is used again
        self._gradients_noted = False
        self._before: dict[str, Tensor] = {}
        self._optimizers: list[Any] = []
        self._in_collective = False
        self._facts: dict[str, Any] = {
            "loaders": [],
            "passes": [],
            "dropout": False,
            "batchnorm": [],
            "rows": 0,
            "left out": 0,
        }

    def install(self) -> None:
        global_hooks.register_module_forward_pre_hook(self._enter_module)
        global_hooks.register_module_forward_hook(self._leave_module, always_call=True)
        optimizers.register_optimizer_step_pre_hook(self._before_step)
        optimizers.register_optimizer_step_post_hook(self._after_step)
        self._watch_backward()
        self._watch_clipping()
        self._watch_scaling()
        self._watch_dropout()
        self._watch_data()
        for name in COLLECTIVES:
            self._watch_collective(name)

    def finish(self) -> None:
        path = self._folder / f"facts-{self._rank}.json"
        path.write_text(json.dumps({**self._facts, "steps": self._step}))

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

    # the backward, and what is done to gradients

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
        """A step that a GradScaler leaves out, for an overflow that it looks for, is none of the training's."""
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
        """The parameters of what was run forward last, by the model's names."""
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
        apart = [name for name, p in self._named() if p.requires_grad and id(p) not in held]
        known = {id(p) for _, p in self._named()}
        self._recorder.note(Key("setting", "not in the optimizer"), "\n".join(apart))
        self._recorder.note(Key("setting", "not in the model"), str(len(held - known)))

    def _after_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if self._step < self._steps:
            self._note_update(optimizer)
            self._recorder.end_step(self._step)
        self._step += 1
        self._micro, self._gradients_noted = -1, False
        several = any(loader["shuffled"] for loader in self._facts["loaders"])
        if self._step >= self._steps + (BEYOND if several else 0):
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

    # the data

    def _watch_data(self) -> None:
        build, walk = DataLoader.__init__, DistributedSampler.__iter__
        watcher = self

        def build_loader(loader: Any, dataset: Any, batch_size: int | None = 1, *more: Any, **options: Any) -> None:
            found = [value for value in (*more, *options.values()) if isinstance(value, DistributedSampler)]
            if found and batch_size is not None:
                batch_size = watcher._batch_size(batch_size, found[0])
            build(loader, dataset, batch_size, *more, **options)

        def walk_sampler(sampler: Any) -> Iterator[int]:
            order = list(walk(sampler))
            watcher._see_pass(sampler, order)
            return iter(order)

        DataLoader.__init__ = build_loader  # type: ignore[method-assign, assignment]
        DistributedSampler.__iter__ = walk_sampler  # type: ignore[method-assign, assignment]

    def _batch_size(self, size: int, sampler: Any) -> int:
        number = len(self._facts["loaders"])
        if self._sizes is not None and number < len(self._sizes):
            size = self._sizes[number]
        self._facts["loaders"].append({"batch": size, "shuffled": bool(sampler.shuffle)})
        self._facts["rows"] = max(self._facts["rows"], len(sampler.dataset))
        return size

    def _see_pass(self, sampler: Any, order: list[int]) -> None:
        digest = digest_of(json.dumps(order).encode())
        at = self._step
        self._facts["passes"].append([at, digest, bool(sampler.shuffle), int(sampler.epoch), len(order)])
        beyond = [one for one in self._facts["passes"] if one[0] > 0 and one[2]]
        if self._step >= self._steps and beyond:
            raise SystemExit(0)

    # collectives

    def _watch_collective(self, name: str) -> None:
        inner = getattr(dist, name)

        def entered(*arguments: Any, **options: Any) -> Any:
            site = self._site()
            if self._in_collective or site is None:  # torch's own call, or one inside another
                return inner(*arguments, **options)
            self._in_collective = True
            try:
                line = [self._step, name, *self._what((*arguments, *options.values())), site]
                self._log.write(json.dumps(line) + "\n")
                found = inner(*arguments, **options)
                self._log.write('"done"\n')
                return found
            finally:
                self._in_collective = False

        setattr(dist, name, entered)

    def _what(self, arguments: Sequence[Any]) -> tuple[str, list[int]]:
        tensor = next((value for value in arguments if isinstance(value, Tensor)), None)
        if tensor is None:
            return "", []
        for name, parameter in self._named():
            if tensor is parameter or tensor.data_ptr() == parameter.data_ptr() != 0:
                return name, list(tensor.shape)
            gradient = parameter.grad
            if gradient is not None and not is_sharded(gradient) and tensor.data_ptr() == gradient.data_ptr() != 0:
                return f"gradient of {name}", list(tensor.shape)
        return "", list(tensor.shape)

    def _site(self) -> str | None:
        for frame in reversed(traceback.extract_stack(limit=12)[:-2]):
            if "/torch/" in frame.filename:
                return None
            if Path(frame.filename).parent == self._script.parent:
                return f"{Path(frame.filename).name}:{frame.lineno}"
        return None


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
    """The model's own name of a parameter, without what wrappers put in front."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))

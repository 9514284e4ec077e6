"""Private names of torch: each is used for one concern, in files that are named here, and this torch has it."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import samestep

SRC = Path(samestep.__file__).parent

PRIVATE: dict[str, tuple[str, ...]] = {
    # a kernel that public functions do not choose
    "torch.ops.mkldnn._linear_pointwise": ("system/onednn.py",),
    # kernels of optimizers and norms, as torch.optim and clip_grad_norm_ call them
    "torch._fused_adamw_": ("numerics/kernel_fingerprint.py", "numerics/kernel_promises.py"),
    "torch._fused_sgd_": ("numerics/kernel_fingerprint.py", "numerics/kernel_promises.py"),
    "torch._foreach_addcdiv_": ("numerics/kernel_fingerprint.py", "numerics/kernel_promises.py"),
    "torch._foreach_addcmul_": ("numerics/kernel_promises.py",),
    "torch._foreach_lerp_": ("numerics/kernel_promises.py",),
    "torch._foreach_mul_": ("numerics/kernel_fingerprint.py", "numerics/kernel_promises.py"),
    "torch._foreach_norm": (
        "numerics/kernel_fingerprint.py",
        "numerics/kernel_promises.py",
        "parallel/gradients/clipping.py",
    ),
    # torch.no_grad, as a record of forward sees it
    "torch._C._set_grad_enabled": (
        "parallel/cutting/bonds.py",
        "parallel/cutting/cut.py",
        "parallel/cutting/recorder.py",
    ),
    # hooks on what autograd saves, and transforms that want a Linear of torch's own
    "torch._C._autograd._top_saved_tensors_default_hooks": ("parallel/cutting/recorder.py",),
    "torch._C._are_functorch_transforms_active": ("parallel/gradients/linear.py",),
    "torch._C._functorch.peek_interpreter_stack": ("parallel/cutting/transforms.py",),
    # memory with a place of its own
    "torch.UntypedStorage._new_shared": ("system/nameless_memory.py",),
    "torch.UntypedStorage._new_with_weak_ptr": ("parallel/lazy_init/lazy_record.py",),
    # initial values that are computed later, and where a tensor comes from
    "torch._meta_registrations": ("parallel/lazy_init/shape_inference.py",),
    "torch.nn.init._no_grad_trunc_normal_": ("parallel/lazy_init/lazy_record.py",),
    "torch.utils._python_dispatch.TorchDispatchMode": (
        "parallel/cutting/births.py",
        "parallel/lazy_init/lazy_record.py",
    ),
    "torch.utils._python_dispatch._disable_current_modes": ("parallel/lazy_init/lazy_record.py",),
    # the compiler, kept out of optimizers
    "torch._dynamo": ("verification/script/forked_runs.py",),
    # the base class of all BatchNorms
    "torch.nn.modules.batchnorm._BatchNorm": (
        "launch/run/plain_run.py",
        "parallel/execution/synchronized_batchnorm.py",
        "verification/script/hooks.py",
    ),
    # a store that the user's script has opened
    "torch.distributed.distributed_c10d._get_default_store": ("launch/hosts/membership.py",),
}
"""By full name: the files that use it. torch.utils._pytree, which torch documents, is left out."""

SHORT = {"nn": "torch.nn", "optim": "torch.optim", "distributed_c10d": "torch.distributed.distributed_c10d"}


def names_in(tree: ast.AST) -> set[str]:
    """Private names of torch in a file, in full."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            if first == "torch" or first in SHORT:
                found.add(SHORT.get(first, first) + dot + rest)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("torch")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            found.add(f"{ast.unparse(node.args[0])}.{str(ast.unparse(node.args[1])).strip(chr(39))}")
    private = {name for name in found if is_private(name)}
    return {name for name in private if not any(other.startswith(f"{name}.") for other in private)}


def is_private(name: str) -> bool:
    parts = name.split(".")
    private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
    if not all(part.isidentifier() for part in parts):  # a call on the way
        return False
    return parts[0] == "torch" and bool(private) and "_pytree" not in parts and name != "torch._C"


def test_each_private_name_is_used_where_it_is_named_here() -> None:
    used: dict[str, set[str]] = {}
    for file in sorted(SRC.rglob("*.py")):
        for name in names_in(ast.parse(file.read_text())):
            used.setdefault(name, set()).add(str(file.relative_to(SRC)))
    assert {name: tuple(sorted(files)) for name, files in used.items()} == PRIVATE


@pytest.mark.parametrize("name", PRIVATE)
def test_this_torch_has_it(name: str) -> None:
    if "mkldnn" in name and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("this torch is built without oneDNN")
    if "distributed" in name and not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    found: Any = torch
    for i, part in enumerate(name.split(".")[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(name.split(".")[:i]))
        found = getattr(found, part)
    assert found is not None

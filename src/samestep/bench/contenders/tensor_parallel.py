"""torch's tensor parallelism (Megatron's: Shoeybi et al. 2019, section 3) for pairs of Linear layers.

    Linear (columns) -> elementwise layers -> Linear (rows): every worker has a part of the features between them

Every worker sees the whole batch; layers outside of pairs are computed by all of them.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from samestep.bench.contenders.contender_process import DoesNotApply
from samestep.job.job import Job
from samestep.training.plain_loop import Loop, trainable

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Mish, nn.Softplus,
    nn.Dropout, nn.Identity,
)  # fmt: skip


def pairs_of(model: nn.Module) -> list[tuple[str, str]]:
    """Linear layers that follow one another in a Sequential with nothing but elementwise layers between."""
    found = []
    for name, module in model.named_modules():
        open_ = ""
        for local, child in module.named_children() if isinstance(module, nn.Sequential) else ():
            inner = f"{name}.{local}" if name else local
            if isinstance(child, nn.Linear):
                found += [(open_, inner)] if open_ else []
                open_ = "" if open_ else inner
            elif not isinstance(child, ELEMENTWISE):
                open_ = ""
    return found


def features_of(model: nn.Module, pair: tuple[str, str]) -> int:
    """Number of features between the two layers."""
    first = model.get_submodule(pair[0])
    assert isinstance(first, nn.Linear)
    return first.out_features


class TensorParallel(Loop):
    """The loop of one worker. Raises DoesNotApply without a pair whose features can be divided evenly."""

    def __init__(self, job: Job, model: nn.Module, rank: int, workers: int) -> None:
        pairs = pairs_of(model)
        if not pairs:
            raise DoesNotApply("no two Linear layers follow one another in a Sequential")
        even = [pair for pair in pairs if features_of(model, pair) % workers == 0]
        if not even:
            features = features_of(model, pairs[0])
            raise DoesNotApply(
                f"the {features} features of {pairs[0][0]} cannot be divided among {workers} workers evenly"
            )
        styles: dict[str, ParallelStyle] = {}
        for first, second in even:
            styles |= {first: ColwiseParallel(), second: RowwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (workers,)), styles)
        # No optimizer of torch takes both kinds of tensors at once.
        kinds = [[p for p in trainable(model) if isinstance(p, DTensor) is parallel] for parallel in (True, False)]
        super().__init__(job, model, [group for group in kinds if group])
        self._workers_of_loss = workers

    def step(self, batch: object) -> Tensor:
        return super().step(batch) / self._workers_of_loss  # every worker has the whole loss

    def clip(self, largest: float) -> None:
        """torch's function takes one kind of tensors at a time too: the same formula by hand."""
        norms = [torch.linalg.vector_norm(p.grad) for p in self.params if p.grad is not None]
        whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        factor = (largest / (torch.linalg.vector_norm(torch.stack(whole)) + 1e-6)).clamp(max=1.0)
        for param in self.params:
            if param.grad is not None:
                grad = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
                grad.mul_(factor)

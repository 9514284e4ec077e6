"""stale(s): the update at the end of step t uses the gradient of step t - s. The plans that it serves, and its bound.

    version k of the parameters: after k updates. Update k is of gradient g_k, that of batch k.

    step          0       1       2       3             s = 1
    computes      g_0     g_1     g_2     g_3
    on version    0       0       1       2             max(0, t - s)
    ends with     -       g_0     g_1     g_2           the first s steps make no update
    applied to    -       0       1       2             so g_k, computed on version max(0, k - s), is applied to
                                                        version k: min(k, s) updates late, never more

Every read of a parameter is held to this: the worker that updates a piece counts its updates in memory of the host, and
before a shard's forward its worker looks at the counts of all whose pieces it will read.

The order is that of exact steps: update k has the learning rate, the momentum and the clipping that it would have had.
After T steps T - s updates are made, and s gradients are under way; a checkpoint has them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samestep.errors import Disagreement, PlanRefused
from samestep.numerics.policy import Stale
from samestep.plan.plan import Plan

EVERY = 32_768  # elements of a tensor's own index, of which
SAMPLE = 64  # are compared to measure how far parameters move


def steps_stale(plan: Plan) -> int:
    """The s of stale(s); 0 for every other policy."""
    policy = plan.numerics.policy
    return policy.steps if isinstance(policy, Stale) else 0


def check_stale(plan: Plan, device: str = "cpu") -> None:
    """Raises PlanRefused for a plan that stale gradients cannot serve."""
    stale = steps_stale(plan)
    if not stale:
        return
    if plan.stages:
        raise PlanRefused(
            f"stale({stale}) lets gradients take {stale} more steps to come; this plan "
            f"({len(plan.stages)} stage{'s' * (len(plan.stages) > 1)}, "
            f"slices {plan.numerics.slices}) moves activations, for which the step itself waits: "
            "use --plan data, or --sync exact"
        )
    if device != "cpu":
        raise PlanRefused(f"stale({stale}) runs on CPUs so far, and --device is {device}: use --sync exact there")


def version_at(step: int, stale: int) -> int:
    """The version of the parameters that a step computes with."""
    return max(0, step - stale)


@dataclass
class Bound:
    """The bound as a run has observed it. versions: int64, the updates made by each worker, in memory of the host."""

    steps: int
    versions: Tensor
    staleness: int = 0  # the most updates that a gradient came late
    divergence: float = 0.0  # the largest distance of parameters from those that many updates before
    updates: int = 0  # in this run
    _samples: list[Tensor] = field(default_factory=list)  # of the last versions, the newest last

    def read(self, step: int, workers: Sequence[int]) -> int:
        """Worker by worker, whose pieces a shard of `step` is about to be computed with. Returns their version.

        Raises Disagreement where one is not what the step should see: older than the policy allows, or too new.
        """
        wanted = version_at(step, self.steps)
        for worker in workers:
            found = int(self.versions[worker])
            if found != wanted:
                raise Disagreement(
                    f"step {step} reads parameters of worker {worker} after {found} updates, {step - found} behind: "
                    f"stale({self.steps}) reads them after {wanted}, {step - wanted} behind and never more than "
                    f"{self.steps}"
                )
        return wanted

    def use(self, step: int, computed_on: int, applied_to: int) -> None:
        """The gradient of batch `step` is about to change version `applied_to`. Raises Disagreement out of bounds."""
        late = applied_to - computed_on
        if applied_to != step or late > self.steps:
            raise Disagreement(
                f"the gradient of step {step}, computed after {computed_on} updates, is about to be applied after "
                f"{applied_to}, {late} late: stale({self.steps}) applies it after {step}, at most {self.steps} late"
            )
        self.staleness = max(self.staleness, late)
        self.updates += 1
        if len(self._samples) > self.steps:
            self.divergence = max(self.divergence, relative_distance(self._samples[0], self._samples[-1]))

    def look(self, parameters: Sequence[Tensor]) -> None:
        """Sample the parameters that a step begins with; 1-D, in storage order, in the order of the layout."""
        self._samples.append(sample(parameters))
        del self._samples[: -self.steps - 1]

    def report(self) -> dict[str, float]:
        return {
            "bound": self.steps,
            "staleness": self.staleness,
            "divergence": self.divergence,
            "updates": self.updates,
        }


def sample(parameters: Sequence[Tensor]) -> Tensor:
    """The first 64 of every 32,768 elements of each tensor: the same ones, no matter who owns what."""
    found = []
    for flat in parameters:
        whole = flat.numel() // EVERY * EVERY
        found += [flat[:whole].view(-1, EVERY)[:, :SAMPLE].reshape(-1), flat[whole:][:SAMPLE]]
    return torch.cat([part.detach().double() for part in found]) if found else torch.zeros(0, dtype=torch.float64)


def relative_distance(old: Tensor, new: Tensor) -> float:
    """The distance of two tensors over the norm of the newer one."""
    off, norm = float((new - old).norm()), float(new.norm())
    return off / norm if norm else math.inf if off else 0.0

"""Logical workers, and the workers that compute for them; plans that they cannot serve are refused.

    8 shards, local(16,workers=4)      logical worker   0: shards 0 1   1: 2 3   2: 4 5   3: 6 7
    on two workers, 4 shards each      worker 0 is 0 and 1; worker 1 is 2 and 3
    on one                             it is all four, one after the other

A logical worker has its own parameters, so its shards are computed by one worker. At their meetings the
logical workers are to the parameters what shards are to gradients: summed in the tree's order over their number.
"""

from dataclasses import dataclass, replace

from samestep.errors import PlanRefused
from samestep.numerics.policy import Local
from samestep.plan.plan import Plan, spell


@dataclass(frozen=True)
class Logical:
    """The logical workers of a plan. assign: the number of consecutive ones that each worker is."""

    policy: Local
    shards: int  # of a whole batch
    assign: tuple[int, ...]

    @property
    def workers(self) -> int:
        return sum(self.assign)

    def of(self, rank: int) -> range:
        """The logical workers that worker `rank` is."""
        first = sum(self.assign[:rank])
        return range(first, first + self.assign[rank])

    def shards_of(self, worker: int, num_shards: int) -> range:
        """Its shards of a step with `num_shards`. A short batch may leave the last logical workers without any."""
        share = self.shards // self.workers
        return range(min(worker * share, num_shards), min((worker + 1) * share, num_shards))

    def all_shards(self, num_shards: int) -> list[range]:
        return [self.shards_of(worker, num_shards) for worker in range(self.workers)]

    def steps_since_meeting(self, step: int) -> int:
        """Steps that the logical workers have taken since their last meeting, when step number `step` begins."""
        return step % self.policy.steps

    def meets(self, step: int) -> bool:
        """Whether they meet at the end of step number `step`."""
        return self.steps_since_meeting(step + 1) == 0


def logical_of(plan: Plan) -> Logical | None:
    """None for a plan whose workers agree every step. Raises PlanRefused for one that the policy cannot serve."""
    policy = plan.numerics.policy
    if not isinstance(policy, Local):
        return None
    numerics = plan.numerics
    if plan.stages:
        raise PlanRefused(
            f"{policy} gives every logical worker parameters of its own, and this plan spreads one model over workers "
            f"({len(plan.stages)} stage{'s' * (len(plan.stages) > 1)}, slices {numerics.slices}): use --plan data, or "
            "--sync exact"
        )
    if numerics.sync_batchnorm:
        raise PlanRefused(
            f"sync_batchnorm computes statistics over the whole batch at every step, and under {policy} the workers "
            "do not meet at every step: leave one of the two out"
        )
    if numerics.codec != "none":
        raise PlanRefused(
            f"the codec {numerics.codec} is for gradients that are exchanged every step, and {policy} exchanges "
            "parameters, of which a rounding would stay: leave one of the two out"
        )
    workers = policy.num_workers(numerics.shards)
    share = numerics.shards // workers
    if any(count % share for count in plan.assign) or 0 in plan.assign:
        raise PlanRefused(
            f"{policy} has {workers} logical workers of {share} shards each, and a logical worker is computed by one "
            f"worker; the assignment {spell(plan.assign)} splits one, or leaves a worker without: use at most "
            f"{workers} workers, and assign multiples of {share}"
        )
    return Logical(policy, numerics.shards, tuple(count // share for count in plan.assign))


def check_local(plan: Plan, device: str = "cpu", *, is_limited: bool = False) -> None:
    """Raises PlanRefused for a plan that logical workers cannot serve. is_limited: workers hold parts of one model."""
    if (logical := logical_of(plan)) is None:
        return
    if is_limited:
        raise PlanRefused(
            f"--memory-limit is for models that do not fit one worker, and {logical.policy} keeps a whole one for "
            "every logical worker: leave one of the two out"
        )
    if device != "cpu":
        raise PlanRefused(f"{logical.policy} runs on CPUs so far, and --device is {device}: use --sync exact there")


def at_meetings(plan: Plan) -> Plan:
    """The plan of the meetings, with logical workers in the place of shards; without any, the plan itself."""
    logical = logical_of(plan)
    if logical is None:
        return plan
    return replace(plan, numerics=replace(plan.numerics, shards=logical.workers), assign=logical.assign)

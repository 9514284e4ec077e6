"""The mutations: where, what is changed, what it breaks, and which tests of `make test` are to notice.

`old` stands in its file exactly once.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str  # what it breaks
    file: str  # below src/samestep
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "tree: nodes that are no siblings are added",
        "numerics/reduction_tree.py",
        "top.index % 2 == 1 and stack[-1] == Node(top.level, top.index - 1)",
        "top.index % 2 == 1",
        ("tests/numerics/test_reduction_tree.py",),
    ),
    Mutation(
        "tree: the last shard counts as missing",
        "numerics/reduction_tree.py",
        "<< node.level < num_shards:",
        "<< node.level < num_shards - 1:",
        ("tests/numerics/test_reduction_tree.py",),
    ),
    Mutation(
        "weights: a mean over a shard's rows is not weighted by them",
        "job/objective.py",
        "(self.weight if self.is_mean else 1.0) / batch_rows",
        "1.0 / batch_rows",
        ("tests/job/test_objective.py", "tests/transparency/test_plain_step.py"),
    ),
    Mutation(
        "weights: a sum that is larger than the mean is not divided",
        "parallel/gradients/reduction.py",
        "if scale != 1.0:",
        "if scale > 1.0:",
        ("tests/parallel/gradients/test_reduction.py", "tests/transparency/test_plain_step.py"),
    ),
    Mutation(
        "order of rows: every epoch has the first one's",
        "data/row_order.py",
        'key(self.seed, "epoch", epoch)',
        'key(self.seed, "epoch")',
        ("tests/data/test_row_order.py",),
    ),
    Mutation(
        "random streams: a second normal number is forgotten on the way to another worker",
        "numerics/random_streams.py",
        "gauss if has_own else None",
        "None",
        ("tests/numerics/test_random_streams.py",),
    ),
    Mutation(
        "clip: norms of chunks are added, not their squares",
        "parallel/gradients/clipping.py",
        "math.fsum(norm * norm for",
        "math.fsum(norm for",
        ("tests/parallel/gradients/test_clipping.py",),
    ),
    Mutation(
        "clip: small gradients are made larger",
        "parallel/gradients/clipping.py",
        "min(max_norm / (norm + 1e-6), 1.0)",
        "max_norm / (norm + 1e-6)",
        ("tests/parallel/gradients/test_clipping.py", "tests/transparency/test_plain_step.py"),
    ),
    Mutation(
        "update: a parameter without a gradient is updated with zeros",
        "parallel/gradients/sharded_update.py",
        "None if grad is None else grad.as_strided",
        "torch.zeros_like(target) if grad is None else grad.as_strided",
        ("tests/parallel/gradients/test_sharded_update.py",),
    ),
    Mutation(
        "update: Adagrad's first state is lost",
        "parallel/gradients/sharded_update.py",
        "if whole in old_state:",
        "if False:",
        ("tests/parallel/gradients/test_sharded_update.py",),
    ),
    Mutation(
        "cuts: a value that crosses two stages is not passed on",
        "parallel/cutting/cut.py",
        "if s.stage <= p for v",
        "if s.stage == p for v",
        ("tests/parallel/cutting/test_cut.py",),
    ),
    Mutation(
        "buffers: statistics are averaged without the shards' rows",
        "parallel/execution/buffers.py",
        "merged(shards, rows, self.names[i], self._rules[i])",
        "merged(shards, [1] * len(rows), self.names[i], self._rules[i])",
        ("tests/parallel/execution/test_buffers.py", "tests/transparency/test_transparency.py"),
    ),
    Mutation(
        "schedule: weights' gradients wait for the wrong number of sets",
        "schedule/orders/pipeline.py",
        "max(most) - most[rank])",
        "max(most))",
        ("tests/schedule/orders/test_pipeline.py",),
    ),
    Mutation(
        "schedule: the checker lets workers end their step differently",
        "schedule/checker.py",
        "        refuse_other_end(rank, schedule, schedules[0])\n",
        "",
        ("tests/schedule/test_checker.py", "tests/sync/test_stale.py"),
    ),
    Mutation(
        "exchange: three hosts all update all, and nobody sends the sums for it",
        "parallel/gradients/stretches.py",
        "len(groups) <= 2 or ",
        "len(groups) <= 3 or ",
        ("tests/parallel/gradients/test_stretches.py", "tests/transparency/test_many_hosts.py"),
    ),
    Mutation(
        "exchange: what compression lost is not sent later",
        "codec/feedback.py",
        "residual -= self.inner.decode(packed, values.shape, values.dtype)",
        "residual.zero_()",
        ("tests/codec/test_codec.py::test_feedback_loses_nothing",),
    ),
    Mutation(
        "sync: the outer momentum has the wrong sign",
        "sync/averaging.py",
        ".add_(moved)",
        ".sub_(moved)",
        ("tests/sync/test_local.py",),
    ),
    Mutation(
        "checkpoint: a damaged file is read",
        "state/checkpoint.py",
        "if file_hash(folder / name) != wanted:",
        "if not (folder / name).exists():",
        ("tests/state/test_checkpoint.py",),
    ),
    Mutation(
        "proof: a gradient that another stage loses is taken for kept",
        "setup/shard_result.py",
        "for name, grad in found.items() if stage_of[name] == stage}",
        "for name, grad in found.items() if grad is not None}",
        ("tests/setup/test_proof.py",),
    ),
    Mutation(
        "proof: values that differ pass",
        "setup/proof.py",
        "difference = next(differences(found, wanted, bit_for_bit), None)",
        "difference = None",
        ("tests/setup/test_proof.py",),
    ),
    Mutation(
        "planner: a shard more makes nobody later",
        "planner/search/greedy_shares.py",
        "finishing[rank](counts[rank] + 1)",
        "finishing[rank](1)",
        ("tests/planner/search/test_greedy_shares.py",),
    ),
    Mutation(
        "planner: the slowest split is the best one",
        "planner/search/partition.py",
        "key=lambda split: (split.bottleneck",
        "key=lambda split: (-split.bottleneck",
        ("tests/planner/search/test_partition.py",),
    ),
]

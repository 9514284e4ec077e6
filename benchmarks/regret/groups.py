"""The groups: a model and batch, its numerics, and where it runs. In each, every plan that the planner considers
competes, and the numerics are the same for all, except which layers are cut into K slices."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    model: str  # name in benchmarks/models.py
    shards: int = 4
    threads: int = 1
    slices: int | None = None  # K, if layers may be sliced
    rate: str | None = None  # rate of the link between two hosts with a worker each; None: one host, up to two workers
    cpu: float | None = None  # the share of a core that the second host's worker gets


GROUPS = {
    "mlp": Group("mlp", slices=4),
    "mlp S=2": Group("mlp", shards=2, slices=2),
    "mlp 1024": Group("mlp-1024"),
    "small mlp": Group("mlp-small"),
    "mlp, 2 threads": Group("mlp", threads=2),
    "cnn": Group("cnn", slices=4),
    "cnn S=8": Group("cnn", shards=8),
    "gpt": Group("gpt"),
    "gpt 8 blocks": Group("gpt-deep"),
    "alexnet 16": Group("alexnet", slices=4),
    "alexnet 32 S=2": Group("alexnet-32", shards=2, slices=2),
    "resnet": Group("resnet"),
    "lstm": Group("lstm"),
    "bag": Group("bag", slices=4),
    "mlp, 1 Gbit/s": Group("mlp", rate="1gbit"),
    "mlp sliced, 1 Gbit/s": Group("mlp", slices=4, rate="1gbit"),
    "alexnet 32, 1 Gbit/s": Group("alexnet-32", slices=4, rate="1gbit"),
    "gpt, 1 Gbit/s": Group("gpt", rate="1gbit"),
    "gpt, 100 Mbit/s": Group("gpt", rate="100mbit"),
    "cnn, 1 Gbit/s": Group("cnn", slices=4, rate="1gbit"),
    "resnet 2:1": Group("resnet", shards=6, rate="10gbit", cpu=0.5),
    "cnn 3:1": Group("cnn", shards=8, rate="10gbit", cpu=0.34),
    "gpt 2:1": Group("gpt", shards=6, rate="10gbit", cpu=0.5),
    "bag, 100 Mbit/s": Group("bag", slices=4, rate="100mbit"),
}

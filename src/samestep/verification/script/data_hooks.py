"""Hooks in torch's loaders and distributed samplers: batch sizes, and the order of each pass over the data.

On one process, a loader with a DistributedSampler gets the batch size that the workers' loaders have together.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from samestep.verification.record import digest_of


class DataHooks:
    """facts: loaders, passes and rows, as JSON. sizes: batch sizes of the nth loaders; steps: those with a record."""

    def __init__(self, sizes: Sequence[int] | None, steps: int, step: Callable[[], int]) -> None:
        self._sizes, self._steps, self._step = sizes, steps, step
        self.facts: dict[str, Any] = {"loaders": [], "passes": [], "rows": 0}

    @property
    def shuffles(self) -> bool:
        return any(loader["shuffled"] for loader in self.facts["loaders"])

    def install(self) -> None:
        build, walk = DataLoader.__init__, DistributedSampler.__iter__

        def build_loader(loader: Any, dataset: Any, batch_size: int | None = 1, *more: Any, **options: Any) -> None:
            found: list[Any] = [value for value in (*more, *options.values()) if isinstance(value, DistributedSampler)]
            if found and batch_size is not None:
                number = len(self.facts["loaders"])
                if self._sizes is not None and number < len(self._sizes):
                    batch_size = self._sizes[number]
                self.facts["loaders"].append({"batch": batch_size, "shuffled": bool(found[0].shuffle)})
                self.facts["rows"] = max(self.facts["rows"], len(found[0].dataset))
            build(loader, dataset, batch_size, *more, **options)

        def walk_sampler(sampler: Any) -> Iterator[int]:
            order = list(walk(sampler))
            self._see_pass(sampler, order)
            return iter(order)

        DataLoader.__init__ = build_loader  # type: ignore[method-assign, assignment]
        DistributedSampler.__iter__ = walk_sampler  # type: ignore[method-assign, assignment]

    def _see_pass(self, sampler: Any, order: list[int]) -> None:
        digest = digest_of(json.dumps(order).encode())
        step = self._step()
        self.facts["passes"].append([step, digest, bool(sampler.shuffle), int(sampler.epoch), len(order)])
        beyond = [one for one in self.facts["passes"] if one[0] > 0 and one[2]]
        if step >= self._steps and beyond:
            raise SystemExit(0)

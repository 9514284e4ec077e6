"""A job's network as the planner sees it: a chain of units with their sizes, and the regions that may be sliced.

    unit       conv1 pool | conv2 relu pool | fc1 relu | fc2 loss        a layer with weights, and the calls after it
    crossing              ^ bytes of a shard that cross a cut here
    region                                    fc1 .......fc2             layers that are sliced together: fc1 by
                                                                         columns, fc2 by rows

Free of torch. Bytes are those of one shard (the first one of a step) unless said otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One layer with weights of its own, with the calls up to the next such layer."""

    name: str  # of the layer's module
    signature: str  # kind, sizes of weights and input: the same for repeated blocks
    parameters: int  # bytes of weights
    entries: int  # registered parameters
    crossing: int  # bytes that cross a cut before this unit, forward, heads and random streams too; 0 before the first
    crossing_back: int  # bytes of gradients that cross it backward, heads too
    keeps: int  # bytes kept for backward
    makes: int  # bytes of the layer's own output: its activations
    work: float  # multiplications of the forward


@dataclass(frozen=True)
class SliceableRegion:
    """Layers that are sliced together: one layer, or a column layer and the row layer that takes its slices."""

    layers: tuple[str, ...]
    units: tuple[int, ...]  # the layers' units
    slices: int  # K
    parameters: int  # bytes that are sliced
    takes: int  # bytes of the region's input
    makes: int  # bytes of its output
    is_summed: bool  # whether slices give summands (row, attention), or columns
    gives_gradient: bool  # whether its input needs a gradient


@dataclass(frozen=True)
class Chain:
    """Everything that planning needs to know about a job, and nothing about a machine."""

    units: tuple[Unit, ...]
    regions: tuple[SliceableRegion, ...]  # in order; disjoint
    why_whole: Mapping[str, str]  # layers that cannot be sliced, and why
    why_uncut: str | None  # why the network cannot be cut at all; it then is one unit
    shards: int  # S, of a step with a full batch
    batch_size: int
    state: float  # elements of optimizer state per element of a parameter
    is_elementwise: bool  # whether the optimizer's update can be cut inside a parameter

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)

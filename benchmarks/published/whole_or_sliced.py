"""Whole or sliced, layer by layer: which of them moves its bytes in less time (Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks").

A whole layer is on every worker and reduces its gradient: its weight's bytes are moved. Of a sliced layer every
worker has a part, and needs the inputs of everybody's rows: activations are moved.

    whole          all-reduce of the weight
    sliced         all-gather of the inputs of all rows, reduce-scatter of their gradients
    sliced, whole  the outputs go home to their rows, their gradients come back

Sizes decide: convolutions have small weights and large activations, fully connected layers the opposite. The best
choice of all layers together is found by going through the chain once, with the layer before whole or sliced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from published.collectives import Link, all_gather, all_reduce, reduce_scatter


@dataclass(frozen=True)
class LayerSizes:
    """Bytes of a layer: its weight, and one row of its input and of its output.

    first: the input is data, and needs no gradient.
    """

    name: str
    weight: int
    input: int
    output: int
    first: bool = False


@dataclass(frozen=True)
class Choice:
    """Per layer whether it is sliced, and the seconds of all exchanges together."""

    sliced: tuple[bool, ...]
    seconds: float


def whole_seconds(layer: LayerSizes, link: Link, workers: int) -> float:
    return all_reduce(link, workers, layer.weight)


def sliced_seconds(layer: LayerSizes, link: Link, workers: int, rows: int) -> float:
    """`rows`: of each worker."""
    inputs = workers * rows * layer.input
    back = 0.0 if layer.first else reduce_scatter(link, workers, inputs)
    return all_gather(link, workers, inputs) + back


def home_seconds(layer: LayerSizes, link: Link, workers: int, rows: int) -> float:
    """From slices back to rows and the gradients the other way: of a worker's rows it has an n-th already."""
    return 2 * reduce_scatter(link, workers, rows * layer.output)


def exchange_seconds(
    layers: Sequence[LayerSizes], sliced: Sequence[bool], link: Link, workers: int, rows: int
) -> float:
    """Of one step with the given choice. The last layer's outputs go home to the loss."""
    costs = _costs(link, workers, rows)
    following = [*sliced[1:], False]
    return sum(costs(*case) for case in zip(layers, sliced, following, strict=True))


def choose(layers: Sequence[LayerSizes], link: Link, workers: int, rows: int) -> Choice:
    """The choice whose exchanges take the least time; whole where both take the same."""
    costs = _costs(link, workers, rows)
    best = {False: Choice((), 0.0)}  # of the layers that follow, by whether the next of them is sliced
    for layer in reversed(layers):
        best = {
            own: min(
                (
                    Choice((own, *rest.sliced), costs(layer, own, following) + rest.seconds)
                    for following, rest in best.items()
                ),
                key=lambda choice: choice.seconds,
            )
            for own in (False, True)
        }
    return min(best.values(), key=lambda choice: choice.seconds)


def _costs(link: Link, workers: int, rows: int) -> Callable[[LayerSizes, bool, bool], float]:
    def seconds(layer: LayerSizes, sliced: bool, following: bool) -> float:
        if not sliced:
            return whole_seconds(layer, link, workers)
        home = 0.0 if following else home_seconds(layer, link, workers, rows)
        return sliced_seconds(layer, link, workers, rows) + home

    return seconds

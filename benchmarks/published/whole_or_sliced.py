"""Choice of whole or sliced for each layer, by the time to move its bytes (Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks").

A whole layer is on every worker and reduces its gradient: the bytes of its weight are moved. A sliced layer has a part
on every worker, which needs the inputs of all workers' rows: activations are moved.

    whole          all-reduce of the weight
    sliced         all-gather of the inputs of all rows, reduce-scatter of their gradients
    sliced, whole  the outputs return to the workers of their rows, their gradients come back

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
    """Seconds of gathering a sliced layer's inputs; `rows` is per worker."""
    inputs = workers * rows * layer.input
    back = 0.0 if layer.first else reduce_scatter(link, workers, inputs)
    return all_gather(link, workers, inputs) + back


def return_seconds(layer: LayerSizes, link: Link, workers: int, rows: int) -> float:
    """Seconds from slices to rows, and back for gradients: a worker has an n-th of its rows already."""
    return 2 * reduce_scatter(link, workers, rows * layer.output)


def exchange_seconds(
    layers: Sequence[LayerSizes], sliced: Sequence[bool], link: Link, workers: int, rows: int
) -> float:
    """Seconds of the exchanges of a step with the given choice, including the last layer's outputs for the loss."""
    costs = _costs(link, workers, rows)
    following = [*sliced[1:], False]
    return sum(costs(*case) for case in zip(layers, sliced, following, strict=True))


def choose(layers: Sequence[LayerSizes], link: Link, workers: int, rows: int) -> Choice:
    """The choice whose exchanges take the least time; whole where both take the same."""
    costs = _costs(link, workers, rows)
    best = {False: Choice((), 0.0)}  # best choice for the following layers, by whether the next one is sliced
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
        home = 0.0 if following else return_seconds(layer, link, workers, rows)
        return sliced_seconds(layer, link, workers, rows) + home

    return seconds

"""PipeDream's profiles: a graph of layers, and all the places where it can be cut.

A node is a line `node4 -- MaxPool2d(...) -- forward_compute_time=0.8, backward_compute_time=1.1,
activation_size=47775744.0, parameter_size=0.0`, times in milliseconds, sizes in bytes (`[a; b]`: their sum); an edge is
a tab and `node3 -- node4`.

A cut divides the nodes into those before it and those after it; no edge leads back. In a chain of L nodes there are L+1
of them; branches make more. Cuts correspond to the antichains of PipeDream's optimizer: a cut's antichain is the last
nodes before it.
"""

import math
import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

MOST_CUTS = 2000
NODE = re.compile(
    r"(?P<name>\S+) -- (?P<what>.*) -- "
    r"forward_compute_time=(?P<forward>[^,]+), backward_compute_time=(?P<backward>[^,]+), "
    r"activation_size=(?P<activation>[^,]+), parameter_size=(?P<parameters>[^,]+?)( -- stage_id=\d+)?"
)


class Malformed(Exception):
    """The file is not a profile; the message says where."""


@dataclass(frozen=True)
class Node:
    name: str
    what: str
    seconds: float  # forward and backward
    activation_bytes: float
    parameter_bytes: float


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and for each the names of the nodes that read its output."""

    nodes: tuple[Node, ...]
    readers: dict[str, frozenset[str]]


@dataclass(frozen=True)
class Cuts:
    """`before[c, n]`: node n is before cut c. No node is before the first cut, all are before the last.

    A smaller cut comes earlier. `one_order`: there were more than MOST_CUTS, and these are those of one topological
    order only.
    """

    before: np.ndarray
    one_order: bool


def read(path: Path) -> Graph:
    """The graph without inputs and unread `__getitem__` nodes, as in PipeDream's optimizer."""
    nodes: dict[str, Node] = {}
    readers: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("\t"):
            ends = line.strip().split(" -- ")
            if len(ends) != 2 or not set(ends) <= set(nodes):
                raise Malformed(f"{path}:{number}: an edge is 'node -- node', of nodes in lines above; here: {line!r}")
            readers[ends[0]].add(ends[1])
        elif line.strip():
            node = _node(f"{path}:{number}", line.strip())
            if node.name in nodes:
                raise Malformed(f"{path}:{number}: {node.name} is there twice")
            nodes[node.name], readers[node.name] = node, set()
    return _in_order(path, nodes, readers)


def _node(place: str, line: str) -> Node:
    match = NODE.fullmatch(line)
    if match is None:
        raise Malformed(f"{place}: neither a node with its times and sizes nor an edge: {line[:80]!r}")
    forward, backward, activation, parameters = (
        _amount(place, match[field]) for field in ("forward", "backward", "activation", "parameters")
    )
    return Node(match["name"], match["what"], (forward + backward) / 1000, activation, parameters)


def _amount(place: str, text: str) -> float:
    try:
        amount = sum(float(part) for part in text.strip("[]").split(";"))
    except ValueError:
        raise Malformed(f"{place}: {text!r} is no number") from None
    if not 0 <= amount < math.inf:
        raise Malformed(f"{place}: {text}: times and sizes are finite and not negative")
    return amount


def _in_order(path: Path, nodes: dict[str, Node], readers: dict[str, set[str]]) -> Graph:
    fed = set().union(*readers.values())
    inputs = {name for name, node in nodes.items() if node.what.startswith("Input") and name not in fed}
    unread = {name for name, node in nodes.items() if node.what.startswith("__getitem__") and not readers[name]}
    left = {name: frozenset(readers[name] - unread) for name in sorted(nodes.keys() - inputs - unread, key=_natural)}
    if not left:
        raise Malformed(f"{path}: no layer in it, only {len(nodes)} inputs and outputs")
    try:
        order = [*TopologicalSorter(left).static_order()][::-1]
    except CycleError as error:
        raise Malformed(f"{path}: the layers {', '.join(error.args[1])} form a cycle") from None
    return Graph(tuple(nodes[name] for name in order), left)


def _natural(name: str) -> tuple[str, int]:
    digits = re.search(r"\d*$", name)
    return (name, 0) if not digits or not digits[0] else (name[: digits.start()], int(digits[0]))


def cuts(graph: Graph) -> Cuts:
    """All cuts of the graph, found node by node; if they are too many, those of its topological order."""
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    needs = [0] * len(graph.nodes)
    for name, readers in graph.readers.items():
        for reader in readers:
            needs[place[reader]] |= 1 << place[name]
    everything = (1 << len(needs)) - 1
    found, edge = {0}, {0}
    while edge and len(found) <= MOST_CUTS:
        edge = {
            cut | 1 << node
            for cut in edge
            for node, wanted in enumerate(needs)
            if not cut >> node & 1 and cut & wanted == wanted
        }
        found |= edge
    one_order = len(found) > MOST_CUTS
    if one_order:
        found = {everything >> (len(needs) - count) for count in range(len(needs) + 1)}
    ordered = sorted(found, key=lambda cut: (cut.bit_count(), cut))
    return Cuts(np.array([[cut >> node & 1 for node in range(len(needs))] for cut in ordered], bool), one_order)

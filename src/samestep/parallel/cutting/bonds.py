"""Bonds: calls of a recorded forward that have to stay in one segment.

- the uses of one parameter: its gradient is the sum over all of them, in autograd's order
- the calls that change one buffer, and those that read it as well
- what torch.autograd.grad inside forward goes back through: its graph ends at a segment's edge
- what is inside of a torch.no_grad()
- who makes and who takes a sparse tensor, which no transport sends
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samestep.parallel.cutting.recording import NAMES, Call, NamedTensor, Recording, Value, attribute_of
from samestep.system.nests import walk

BACKWARDS = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


@dataclass(frozen=True)
class Bond:
    calls: tuple[int, ...]  # positions in the recording, in order; at least two
    what: str  # that they share
    way_out: str

    def is_cut_before(self, position: int) -> bool:
        """Whether a segment that begins with the call at a position would break it."""
        return self.calls[0] < position <= self.calls[-1]


def bonds_of(recording: Recording, model: nn.Module) -> list[Bond]:
    calls = recording.calls
    found = [*_of_state(calls, model), *_of_backwards(calls), *_of_grad_mode(calls), *_of_sparse(recording)]
    return [bond for bond in found if len(bond.calls) > 1]


def state_of(call: Call, model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers that a call uses, each under the name that it uses."""
    found = [(name, attribute_of(model, name)) for name in sorted(call.names)]
    if isinstance(call.what, str):
        module = model.get_submodule(call.what)
        own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        found += [(f"{call.what}.{name}" if call.what else name, tensor) for name, tensor in own]
    return found


def _of_state(calls: Sequence[Call], model: nn.Module) -> Iterator[Bond]:
    users: dict[int, tuple[str, list[int]]] = {}
    moved: set[int] = set()
    for i, call in enumerate(calls):
        for name, tensor in state_of(call, model):
            if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
                positions = users.setdefault(id(tensor), (name, []))[1]
                if i not in positions:
                    positions.append(i)
        moved |= {id(attribute_of(model, name)) for name in call.moves}
    for number, (name, positions) in users.items():
        param = isinstance(attribute_of(model, name), nn.Parameter)
        if param:
            yield Bond(
                tuple(positions),
                f"parameter {name} is used",
                "cut so that both uses are on one side, or register it under a second name, which keeps it tied",
            )
        elif number in moved:
            yield Bond(
                tuple(positions),
                f"buffer {name}, which forward changes, is used",
                "cut so that both uses are on one side, or use --plan data",
            )


def _of_backwards(calls: Sequence[Call]) -> Iterator[Bond]:
    """The calls between what is differentiated and by what; all before where it is not said by what."""
    for i, call in enumerate(calls):
        if call.what not in BACKWARDS:
            continue
        args, kwargs = call.arguments
        given = [*args[1:], kwargs.get("inputs")] if call.what is torch.autograd.grad else [kwargs.get("inputs")]
        by = {leaf for _, leaf in walk(given, NAMES) if isinstance(leaf, NAMES)}
        if call.what is torch.autograd.grad:
            args = args[:1] or (kwargs["outputs"],)
        start = {leaf.index for _, leaf in walk(args, NAMES) if isinstance(leaf, Value)}
        path = _between(calls[:i], by, start)
        yield Bond(
            (*sorted(path), i),
            f"{call} is asked for a gradient through calls",
            "name stages that leave these together, or use --plan data",
        )


def _between(calls: Sequence[Call], by: Collection[Value | NamedTensor], wanted: set[int]) -> set[int]:
    """Positions of the calls through which the values `wanted` depend on `by`; on anything, if that is empty."""
    values = {one.index for one in by if isinstance(one, Value)}
    names = {one.name for one in by if isinstance(one, NamedTensor)}
    after: set[int] = set()
    for i, call in enumerate(calls):
        if not by or call.takes & values or call.names & names:
            after.add(i)
            values.update(call.makes)
    path, needed = set[int](), set(wanted)
    for i in range(len(calls) - 1, -1, -1):
        if needed.intersection(calls[i].makes) or needed & calls[i].changes:
            needed |= calls[i].takes
            path.add(i)
    return path & after


def _of_grad_mode(calls: Sequence[Call]) -> Iterator[Bond]:
    begun: int | None = None
    for i, call in enumerate(calls):
        if call.what is not torch._C._set_grad_enabled:
            continue
        if call.arguments[0][0] and begun is not None:
            yield Bond(
                tuple(range(begun, i + 1)),
                f"a torch.no_grad() begun at {calls[begun].place} reaches",
                "end it before, or cut elsewhere",
            )
            begun = None
        elif not call.arguments[0][0] and begun is None:
            begun = i


def _of_sparse(recording: Recording) -> Iterator[Bond]:
    for value in recording.shapes.keys() - recording.windows.keys():
        users = [i for i, call in enumerate(recording.calls) if value in call.takes or value in call.makes]
        if value >= recording.num_inputs:
            yield Bond(tuple(users), "a sparse tensor is used", "cut elsewhere, or make it again on the other side")

"""Values inside values of any type: walked in one order, copied with their types, their identity and their cycles."""

import collections
import dataclasses
import weakref
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.system.nests import at, mapped, shown, tensors_of, walk


class Plain:
    def __init__(self, x: Any) -> None:
        self.x, self.me = x, self


class Slots:
    __slots__ = ("__hidden", "x")

    def __init__(self, x: Any) -> None:
        self.x, self.__hidden = x, 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any


class Strict(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: object, value: object) -> None:
        raise RuntimeError("nobody's code runs when a nest is copied")


class Table(collections.UserDict):  # type: ignore[type-arg]
    pass


Pair = collections.namedtuple("Pair", ["x", "y"])


class Child:
    def __init__(self, parent: object, x: Any) -> None:
        self.parent, self.x = weakref.ref(parent), x


class Parent:
    def __init__(self, x: Any) -> None:
        self.child = Child(self, x)


KINDS: list[Any] = [
    Plain, Slots, Frozen, Parent, lambda x: [x], lambda x: (x,), lambda x: {"x": x}, lambda x: Strict({"x": x}),
    lambda x: Table(x=x), lambda x: Pair(x, 1), lambda x: collections.OrderedDict(x=x),
    lambda x: collections.deque([x], 2), lambda x: collections.defaultdict(list, x=x),
]  # fmt: skip
nests = st.recursive(
    st.integers(0, 3).map(lambda n: torch.full((2,), float(n))) | st.integers() | st.text(max_size=2),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(KINDS), inner).map(lambda made: made[0](made[1])),
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=8,
)


def doubled(leaf: Any) -> Any:
    return leaf * 2 if isinstance(leaf, Tensor) else leaf


@given(nests)
def test_a_copy_has_the_same_paths_and_types_and_shares_no_container(nest: Any) -> None:
    copied = mapped(nest, doubled)
    ours, theirs = tensors_of(nest), tensors_of(copied)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    assert all(torch.equal(a * 2, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    assert [path for path, _ in walk(nest)] == [path for path, _ in walk(copied)]
    assert all(at(copied, path) is tensor for path, tensor in theirs)
    assert type(copied) is type(nest)


def test_cycles_end_and_stay() -> None:
    one = Plain(torch.ones(2))
    copied = mapped(one, doubled)
    assert copied.me is copied
    assert one.me is one


def test_what_is_one_tensor_in_two_places_stays_one() -> None:
    x = torch.ones(2)
    copied = mapped([x, Plain(x)], doubled)
    assert copied[0] is copied[1].x
    assert len(tensors_of([x, Plain(x)])) == 1


def test_a_weak_reference_to_a_copied_object_is_to_its_copy() -> None:
    copied = mapped(Parent(torch.ones(2)), doubled)
    assert copied.child.parent() is copied


def test_paths_read_as_python_would_spell_them() -> None:
    nest = {"ids": [Plain(torch.ones(1))], "pair": Pair(torch.zeros(1), 2)}
    assert [shown(path) for path, _ in tensors_of(nest)] == ["['ids'][0].x", "['pair'].x"]


def test_functions_modules_and_sets_are_leaves() -> None:
    leaves: list[Any] = [len, torch.nn.Linear(1, 1), {1}, range(3), torch.float32]
    assert [leaf for _, leaf in walk(leaves)] == leaves

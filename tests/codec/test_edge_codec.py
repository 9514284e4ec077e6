import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.codec.bfloat16 import BFloat16
from samestep.codec.codec import GRID, Codec
from samestep.codec.edge_codec import EdgeCodec, parse_codec
from samestep.codec.feedback import Feedback
from samestep.codec.int8 import Int8
from samestep.codec.powersgd import PowerSGD
from samestep.codec.topk import TopK
from samestep.errors import PlanRefused
from samestep.numerics.reduction_tree import Node, promoted

codecs = st.one_of(
    st.just(BFloat16()),
    st.sampled_from([16, 256, GRID]).map(Int8),
    st.floats(0.0, 1.0, exclude_min=True).map(TopK),
    st.integers(1, 1_000).map(PowerSGD),
)


def levels_with_edges(num_shards: int) -> set[int]:
    """Levels at which two nodes of the tree meet."""
    shards = [promoted(Node(0, shard), num_shards) for shard in range(num_shards)]
    found: set[int] = set()
    while len(shards) > 1:
        pairs = [(a, b) for a in shards for b in shards if a.index % 2 == 0 and b == Node(a.level, a.index + 1)]
        found |= {a.level for a, _ in pairs}
        met = {node for pair in pairs for node in pair}
        parents = [promoted(Node(a.level + 1, a.index // 2), num_shards) for a, _ in pairs]
        shards = [node for node in shards if node not in met] + parents
    return found


@pytest.mark.parametrize(
    ("text", "codec", "levels", "normal"),
    [
        ("bfloat16@1", BFloat16(), (1,), "bfloat16@1"),
        ("int8@2", Int8(256), (2,), "int8:256@2"),
        ("int8:32@0,1", Int8(32), (0, 1), "int8:32@0,1"),
        ("topk:0.01@2,3", TopK(0.01), (2, 3), "topk:0.01@2,3"),
        ("topk:1@0", TopK(1.0), (0,), "topk:1.0@0"),
        ("topk@3,2,3", TopK(0.01), (2, 3), "topk:0.01@2,3"),
        ("powersgd:4@2", PowerSGD(4), (2,), "powersgd:4@2"),
        ("powersgd@31", PowerSGD(4), (31,), "powersgd:4@31"),
    ],
)
def test_the_text_names_codec_setting_and_levels(text: str, codec: Codec, levels: tuple[int, ...], normal: str) -> None:
    found = parse_codec(text)
    assert found == EdgeCodec(Feedback(codec), levels)
    assert str(found) == normal


def test_none_is_no_codec() -> None:
    assert parse_codec("none") is None


@given(codec=codecs, levels=st.sets(st.integers(0, 31), min_size=1))
def test_the_normal_form_round_trips(codec: Codec, levels: set[int]) -> None:
    edges = EdgeCodec(Feedback(codec), tuple(sorted(levels)))
    assert parse_codec(str(edges)) == edges
    assert not set(" \n=") & set(str(edges)), "it is one word of a numerics line"
    assert {level for level in range(40) if edges.applies_to(level)} == levels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "bfloat16, int8, topk, powersgd, and none"),
        ("zip@1", "'zip'.*bfloat16, int8"),
        ("zip", "'zip'.*bfloat16, int8"),
        ("None", "'None'.*none"),
        ("int8", "int8@0"),
        ("int8@", "whole numbers from 0 to 31"),
        ("int8@a", "'a'.*whole numbers"),
        ("int8@-1", "whole numbers"),
        ("int8@1,,2", "whole numbers"),
        ("int8@32", "from 0 to 31"),
        ("int8@1@2", "'1@2'"),
        ("int8:@1", "int8:256"),
        ("int8:many@1", "'many'.*int8:256"),
        ("int8:2.5@1", "'2.5'.*int8:256"),
        ("int8:100@1", "power of two"),
        ("topk:nothing@1", r"topk:0\.01"),
        ("topk:0@1", "more than 0"),
        ("topk:2@1", "at most 1"),
        ("topk:nan@1", "at most 1"),
        ("powersgd:0@1", "at least 1"),
        ("powersgd:-2@1", "at least 1"),
        ("bfloat16:8@1", "takes no setting"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        parse_codec(text)


def test_a_refusal_names_the_place() -> None:
    with pytest.raises(PlanRefused, match="the plan has the codec 'zip'"):
        parse_codec("zip", "the plan")


@given(num_shards=st.integers(1, 70), level=st.integers(0, 8))
def test_a_level_without_edges_is_refused(num_shards: int, level: int) -> None:
    edges = EdgeCodec(Feedback(Int8()), (level,))
    if level in levels_with_edges(num_shards):
        edges.check(num_shards)
        return
    with pytest.raises(PlanRefused, match=f"level {level}.*{num_shards} shards.*more than {1 << level} shards"):
        edges.check(num_shards)


@pytest.mark.parametrize(
    ("num_shards", "said"), [(1, "edges of no level"), (2, "edges of level 0 only"), (8, "edges of levels 0 to 2")]
)
def test_the_refusal_says_which_levels_there_are(num_shards: int, said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        EdgeCodec(Feedback(Int8()), (5,)).check(num_shards)


def test_of_five_shards_the_last_one_has_an_edge_of_level_2() -> None:
    """It is promoted: (0, 4) -> (1, 2) -> (2, 1), whose sibling is the sum of the other four."""
    edges = parse_codec("int8@2")
    assert edges is not None
    assert edges.applies_to(promoted(Node(0, 4), 5).level)
    assert not edges.applies_to(promoted(Node(0, 3), 5).level)

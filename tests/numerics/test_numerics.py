import dataclasses
import string
import subprocess
import sys
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.numerics.numerics import (
    MIN_ROWS_PER_SHARD,
    Numerics,
    check_environment,
    default_shards,
    key,
    num_shards_of,
    parse_line,
    shard_rows,
)

words = st.text(string.ascii_letters + string.digits + "+-./,:_=", min_size=1)
numerics = st.builds(
    Numerics,
    seed=st.integers(0, 2**40),
    shards=st.integers(1, 1000),
    threads=st.integers(1, 64),
    precision=words,
    sync_batchnorm=st.booleans(),
    optimizer=words,
    torch=words,
    isa=words,
    mkl=words,
)


@given(numerics)
def test_the_numerics_line_round_trips(found: Numerics) -> None:
    line = found.line()
    assert "\n" not in line
    assert Numerics(**parse_line(line)) == found  # type: ignore[arg-type]


def test_a_part_of_a_line_gives_a_part_of_the_fields() -> None:
    assert parse_line("shards=8   sync_batchnorm=true") == {"shards": 8, "sync_batchnorm": True}
    assert parse_line("") == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("shard=8", "'shard=8'"),
        ("shards", "'shards'"),
        ("shards=eight", "shards=eight"),
        ("seed=1.5", "seed=1.5"),
        ("sync_batchnorm=yes", "sync_batchnorm=true"),
        ("threads=", "threads="),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_the_place(line: str, said: str) -> None:
    with pytest.raises(PlanRefused, match="--numerics") as refused:
        parse_line(line)
    assert said in str(refused.value)


def test_a_line_of_another_environment_is_refused_with_both_sides() -> None:
    found = Numerics(torch="2.13.0", isa="AVX512")
    check_environment({"torch": "2.13.0", "isa": "AVX512", "seed": 7}, found)
    with pytest.raises(PlanRefused, match=r"isa=AVX2.*isa=AVX512"):
        check_environment({"isa": "AVX2"}, found)


@given(rows=st.integers(1, 500), num_shards=st.integers(1, 60))
def test_shards_are_consecutive_parts_that_differ_by_at_most_one_row(rows: int, num_shards: int) -> None:
    parts = shard_rows(rows, num_shards)
    assert len(parts) == num_shards
    assert list(chain(*parts)) == list(range(rows))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= 1


@given(rows=st.integers(1, 500), shards=st.integers(1, 60))
def test_no_shard_of_one_row_when_it_can_be_avoided(rows: int, shards: int) -> None:
    found = num_shards_of(rows, shards)
    assert 1 <= found <= shards
    lengths = [len(part) for part in shard_rows(rows, found)]
    assert min(lengths) >= min(rows, 2)
    if found < shards:  # one more would not do
        assert min(len(part) for part in shard_rows(rows, found + 1)) < 2


@pytest.mark.parametrize(("batch_size", "shards"), [(1, 1), (8, 1), (15, 1), (16, 2), (24, 3), (32, 4), (10_000, 4)])
def test_the_default_number_of_shards_follows_the_batch_alone(batch_size: int, shards: int) -> None:
    assert default_shards(batch_size) == shards
    assert batch_size // shards >= min(batch_size, MIN_ROWS_PER_SHARD)


parts = st.lists(st.integers(0, 10**9) | st.text(string.ascii_lowercase), min_size=1, max_size=5)


@given(parts, parts)
def test_a_key_has_32_bits_and_tells_its_parts_apart(a: list[int | str], b: list[int | str]) -> None:
    assert 0 <= key(*a) < 2**32
    assert (key(*a) == key(*b)) == ([str(part) for part in a] == [str(part) for part in b])


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    """Written down, because a change of these changes the bits of every run there has been."""
    assert [key(0, "model"), key(0, "epoch", 0), key(7, "step", 3, 1)] == [2106825399, 671976821, 2519149973]
    code = "from samestep.numerics.numerics import key; print(key(0, 'model'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 2106825399


def test_every_field_has_a_default_of_its_own_type() -> None:
    for field in dataclasses.fields(Numerics):
        assert type(field.default) in (int, str, bool), field.name


def test_known_kernels_count_in_the_place_of_names_of_instructions() -> None:
    found = Numerics(isa="AVX512", mkl="default", kernels="ab")
    check_environment({"isa": "AVX2", "mkl": "COMPATIBLE", "kernels": "ab"}, found)
    with pytest.raises(PlanRefused, match=r"kernels=cd.*kernels=ab"):
        check_environment({"isa": "AVX512", "kernels": "cd"}, found)
    with pytest.raises(PlanRefused, match=r"isa=AVX2.*isa=AVX512"):
        check_environment({"isa": "AVX2", "kernels": "unknown"}, found)

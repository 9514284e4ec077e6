"""Quantities as text: what is written is read back exactly, and what is no quantity is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.system import units

FLOATS = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(value=FLOATS, kind=st.sampled_from([units.SECONDS, units.BYTES_PER_SECOND, units.FLOPS]))
def test_a_float_is_read_back_bit_for_bit(value: float, kind: units.Units) -> None:
    assert units.read(units.write(value, kind), kind) == value


@given(value=st.integers(min_value=0, max_value=1 << 80))
def test_a_number_of_bytes_is_read_back_exactly(value: int) -> None:
    assert units.read_whole(units.write(value, units.BYTES), units.BYTES) == value


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1 Gbit/s", units.BYTES_PER_SECOND, 1.25e8),
        ("12.5 GB/s", units.BYTES_PER_SECOND, 1.25e10),
        ("50 us", units.SECONDS, 50e-6),
        ("2s", units.SECONDS, 2.0),
        ("40 GFLOP/s", units.FLOPS, 4e10),
        ("16 GiB", units.BYTES, float(1 << 34)),
        (1000, units.BYTES_PER_SECOND, 1000.0),
        (2.5e-6, units.SECONDS, 2.5e-6),
    ],
)
def test_what_people_write_is_read(text: object, kind: units.Units, value: float) -> None:
    assert units.read(text, kind) == value


def test_the_unit_with_the_fewest_digits_is_written() -> None:
    assert units.write(1.25e8, units.BYTES_PER_SECOND) == "1 Gbit/s"
    assert units.write(4.2e9, units.BYTES_PER_SECOND) == "4.2 GB/s"
    assert units.write(1 << 34, units.BYTES) == "16 GiB"
    assert units.write(24 * 10**9, units.BYTES) == "24 GB"
    assert units.write(0.0, units.SECONDS) == "0 s"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1 Gb/s", "nor one with a unit (B/s, KB/s"),
        ("fast", "'fast' is neither a number of B/s"),
        ("GB/s", "is neither a number"),
        ("1000", "is neither a number"),
        (True, "True is neither a number"),
        (None, "None is neither a number"),
        ([1], "is neither a number"),
        ("1_0.0.0 GB/s", "is not a finite number"),
        (float("nan"), "is not a finite number"),
        (float("inf"), "is not a finite number"),
        ("1e999999999 B/s", "is not a finite number"),
        ("1e380 GB/s", "is too large a number"),
    ],
)
def test_anything_else_is_refused(value: object, says: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is looked at
        units.read(value, units.BYTES_PER_SECOND)
    assert says in str(refused.value)


def test_half_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.5 B' is no whole number of B"):
        units.read_whole("0.5 B", units.BYTES)

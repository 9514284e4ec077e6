"""Quantities as people write them, "1 Gbit/s" or "50 us", read and written without losing a bit.

A quantity becomes the nearest float of its value in the base unit (seconds, bytes, bytes/s, FLOP/s);
a written text is the shortest that reads back as the same float.
"""

import itertools
import math
from collections.abc import Mapping
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction

Units = Mapping[str, Fraction]

SECONDS: Units = {"s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9)}
BYTES: Units = {
    **{f"{letter}B": Fraction(1000**p) for p, letter in enumerate(("", "K", "M", "G", "T"))},
    **{f"{letter}iB": Fraction(1024**p) for p, letter in enumerate(("K", "M", "G", "T"), 1)},
}
BYTES_PER_SECOND: Units = {
    **{f"{letter}B/s": Fraction(1000**p) for p, letter in enumerate(("", "K", "M", "G", "T"))},
    **{f"{letter}bit/s": Fraction(1000**p, 8) for p, letter in enumerate(("", "k", "M", "G", "T"))},
}
FLOPS: Units = {f"{letter}FLOP/s": Fraction(1000**p) for p, letter in enumerate(("", "K", "M", "G", "T"))}
RATIO: Units = {"x": Fraction(1)}

LARGEST = 400  # exponent of ten, of either sign; floats end before it


def read(value: object, units: Units) -> float:
    """A number in the base unit, or text such as "12.5 GB/s". Raises ValueError that says what may be written."""
    found = _nearest(_exact(value, units))
    if math.isinf(found):
        raise ValueError(f"{value!r} is too large a number")
    return found


def read_whole(value: object, units: Units) -> int:
    """A whole number of base units, such as bytes. Raises ValueError."""
    exact = _exact(value, units)
    if exact.denominator != 1:
        raise ValueError(f"{value!r} is no whole number of {next(iter(units))}")
    return exact.numerator


def write(value: float, units: Units) -> str:
    """`value` in the unit that needs the fewest digits, "1 Gbit/s" rather than "125 MB/s"; reads back exactly."""
    fitting = [unit for unit, scale in units.items() if 1 <= Fraction(value) / scale < 1000]
    texts = [_written(value, unit, units) for unit in fitting or [next(iter(units))]]
    return min(texts, key=lambda text: len(text.split()[0].replace(".", "").rstrip("0")))


def _exact(value: object, units: Units) -> Fraction:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _fraction(str(value))
    if isinstance(value, str):
        number = value.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/ ")
        unit = value[len(number) :].strip()
        if number and unit in units:
            return _fraction(number) * units[unit]
    raise ValueError(f"{value!r} is neither a number of {next(iter(units))} nor one with a unit ({', '.join(units)})")


def _nearest(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _fraction(number: str) -> Fraction:
    try:
        decimal = Decimal(number)
    except InvalidOperation:
        decimal = Decimal("nan")
    if not decimal.is_finite() or abs(decimal.adjusted()) > LARGEST:
        raise ValueError(f"{number!r} is not a finite number")
    return Fraction(decimal)


def _written(value: float, unit: str, units: Units) -> str:
    """`value` in `unit`, with the fewest digits that read back as the same float (at most 17), or all of an int's."""
    quotient = Fraction(value) / units[unit]
    for digits in itertools.count(1):
        context = Context(prec=digits)
        number = context.normalize(context.divide(Decimal(quotient.numerator), Decimal(quotient.denominator)))
        text = f"{number:f} {unit}" if 1 <= number < 1000 else f"{number} {unit}"
        if (_exact(text, units) if isinstance(value, int) else _nearest(_exact(text, units))) == value:
            return text
    raise AssertionError("a decimal fraction ends")

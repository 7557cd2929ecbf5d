"""Numbers as text for people: true minus signs, as many digits as the spread supports, powers of ten."""

import math
from collections.abc import Iterable

NONE = "–"
MINUS = "\u2212"
_DIGITS = 3  # of a value without a spread
_MOST = 6  # decimals
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals_for(spreads: Iterable[float | None]) -> int:
    """Return the decimals that show two significant digits of the smallest typical spread: their median."""
    known = sorted(spread for spread in spreads if spread and math.isfinite(spread))
    if not known:
        return _DIGITS
    return min(_MOST, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))


def half_width(ends: tuple[float, float] | None) -> float | None:
    """Return half the width of an interval."""
    return None if ends is None else (ends[1] - ends[0]) / 2


def fixed(value: float | None, decimals: int = _DIGITS, *, signed: bool = False) -> str:
    """Return a number with fixed decimals; with `signed`, a plus sign for what is above 0."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(ends: tuple[float, float] | None, decimals: int = _DIGITS, *, signed: bool = False) -> str:
    """Return an interval in brackets, whose line is not broken."""
    if ends is None:
        return NONE
    low, high = (fixed(end, decimals, signed=signed) for end in ends)
    return f"[{low},\u00a0{high}]"


def p_value(p: float | None) -> str:
    """Return a p-value with two significant digits at most, and three decimals."""
    if p is None:
        return NONE
    if p < 0.001:
        return "<\u00a00.001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def short(value: float | None) -> str:
    """Return a number with three significant digits; very small and very large ones with a power of ten."""
    if value is None or not math.isfinite(value):
        return NONE
    mantissa, exponent = (float(part) for part in f"{value:.2e}".split("e"))
    if value and not -3 <= exponent < 6:
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == 1 else f"{mantissa:g}\u00a0×\u00a0{power}".replace("-", MINUS)
    return f"{value:,.{max(0, 2 - int(exponent))}f}".replace("-", MINUS) if exponent < 3 else f"{value:,.0f}"


def plain(value: float | None) -> str:
    """Return a number that a person wrote, such as a learning rate: without zeros at the end."""
    if value is None or not math.isfinite(value):
        return NONE
    if value and not 1e-3 <= abs(value) < 1e6:
        return short(value)
    return f"{value:g}".replace("-", MINUS)


def tick(value: float, _: object = None) -> str:
    """Return the label of an axis: as `plain`, with separators of thousands."""
    return f"{value:,.0f}".replace("-", MINUS) if 1000 <= abs(value) < 1e6 else plain(value)


def capital(title: str) -> str:
    """Return the title of a metric as the beginning of a sentence."""
    return title[:1].upper() + title[1:]


def count(number: float | None) -> str:
    """Return a whole number with separators of thousands."""
    return NONE if number is None or not math.isfinite(number) else f"{round(number):,}"


def duration(seconds: float | None) -> str:
    """Return a time in its largest fitting unit."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f}\u00a0{unit}"
    return f"{seconds:.1f}\u00a0s"


def of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 arm`, `2 arms`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"

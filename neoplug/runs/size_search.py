"""The integer size at which a parameter count is nearest to a wanted one, with few evaluations of the count.

For most adapters the count is a straight line, a + b size: two evaluations give a and b, a third verifies the solution.
Any other count is searched. It is mostly monotone, rising or falling, and may be constant; some sizes may be illegal
(not a divisor, odd, above a limit), for which the count returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise
from math import exp, log

Point = tuple[int, int]  # a size, its count
EVALUATIONS = 40  # of the search at legal sizes, at most; 4 to 8 are usual
NEIGHBOURS = 8  # integers that are tried on each side of an illegal one
STRIDE = 16  # largest factor between an extrapolated size and the last one
CONSTANT_AFTER = 3  # sizes with the same count, after which it is taken as constant
CEILING = 2**40


def nearest(count: Callable[[int], int | None], wanted: int, start: int, likely: Collection[int] = ()) -> list[Point]:
    """Return the evaluated legal sizes with their counts, the nearest to `wanted` first.

    count   function size -> its count, None where the size is illegal
    start   the first size to try
    likely  sizes to try where one is illegal, such as divisors
    """
    evaluated = _Evaluations(count, likely)
    evaluated.near(start, 0, CEILING)
    for attempt in range(0 if _by_line(evaluated, wanted) else EVALUATIONS):
        points = evaluated.points()
        if not points or any(value == wanted for _, value in points):
            break
        if _bracketing_pairs(points, wanted):
            goes_on = _search_between(evaluated, points, wanted, attempt)
        else:
            goes_on = _search_beyond(evaluated, points, wanted)
        if not goes_on:
            break
    return sorted(evaluated.points(), key=lambda point: (abs(point[1] - wanted), point))


def _by_line(evaluated: _Evaluations, wanted: int) -> bool:
    """Evaluate where a straight line through two counts has `wanted`; return whether a third count is on the line."""
    if not (points := evaluated.points()) or not evaluated.near(2 * points[0][0], points[0][0], CEILING):
        return False
    (size, first), (other, second) = evaluated.points()
    slope = (second - first) / (other - size)
    solution = size + (wanted - first) / slope if slope else 0.0
    if solution < 1 or not evaluated.near(solution, 0, CEILING):
        return False
    if len(evaluated.points()) == 2:  # one of the two is the nearest, if the line holds
        evaluated.near(size + other, other, CEILING)
    third = [point for point in evaluated.points() if point[0] not in (size, other)]
    is_near = any(abs(at - solution) <= NEIGHBOURS for at, _ in evaluated.points())
    return is_near and any(count == first + slope * (at - size) for at, count in third)


class _Evaluations:
    """The sizes evaluated so far, each once.

    floor, ceiling  no legal size is at or below the floor, at or above the ceiling
    closed          pairs of legal sizes with no legal size between them
    """

    def __init__(self, count: Callable[[int], int | None], likely: Collection[int]) -> None:
        self._count, self._likely = count, likely
        self._counts: dict[int, int | None] = {}
        self.floor, self.ceiling = 0, CEILING
        self.closed: set[Point] = set()

    def points(self) -> list[Point]:
        """Return the legal sizes evaluated so far with their counts, in ascending order."""
        return sorted((size, count) for size, count in self._counts.items() if count is not None)

    def near(self, guess: float, low: int, high: int) -> bool:
        """Evaluate sizes between `low` and `high`, the nearest to `guess` first; return whether one is legal."""
        middle = round(guess)
        around = sorted(range(middle - NEIGHBOURS, middle + NEIGHBOURS + 1), key=lambda size: abs(size - guess))
        likely = sorted(self._likely, key=lambda size: abs(size - guess))
        return any(self._is_legal(size) for size in (*around, *likely) if low < size < high)

    def _is_legal(self, size: int) -> bool:
        if size not in self._counts:
            self._counts[size] = self._count(size)
        return self._counts[size] is not None


def _bracketing_pairs(points: list[Point], wanted: int) -> list[tuple[Point, Point]]:
    """Return the pairs of neighbours with `wanted` between their counts."""
    return [pair for pair in pairwise(points) if min(pair[0][1], pair[1][1]) < wanted < max(pair[0][1], pair[1][1])]


def _search_between(evaluated: _Evaluations, points: list[Point], wanted: int, attempt: int) -> bool:
    """Evaluate a size between two neighbours with `wanted` between their counts; return whether one was legal."""
    for below, above in _bracketing_pairs(points, wanted):
        low, high = below[0], above[0]
        if (low, high) in evaluated.closed:
            continue
        bisects = attempt % 3 == 2 or not (below[1] and above[1])  # interpolation alone may move one end only
        guess = (low * high) ** 0.5 if bisects else _interpolate(below, above, wanted)
        if high - low > 1 and evaluated.near(min(max(round(guess), low + 1), high - 1), low, high):
            return True
        evaluated.closed.add((low, high))
    return False


def _search_beyond(evaluated: _Evaluations, points: list[Point], wanted: int) -> bool:
    """Evaluate a size outside those so far, on the side of `wanted`; return False if none can come nearer to it."""
    (_, first), (_, last) = points[0], points[-1]
    if first == last:
        return _search_other_count(evaluated, points, wanted)
    up = (last > first) == (wanted > last)
    inner, outer = points[-2:] if up else points[1::-1]
    low, high = (outer[0], evaluated.ceiling) if up else (evaluated.floor, outer[0])
    if inner[1] == outer[1] or high - low < 2:  # the count is constant there, or no size is left
        return False
    has_limit = evaluated.ceiling < CEILING if up else evaluated.floor > 0
    guess = (low + high) // 2 if has_limit else min(max(_extrapolate(inner, outer, wanted, up), low + 1), high - 1)
    if not evaluated.near(guess, low, high):
        evaluated.floor, evaluated.ceiling = (evaluated.floor, guess) if up else (guess, evaluated.ceiling)
    return True


def _search_other_count(evaluated: _Evaluations, points: list[Point], wanted: int) -> bool:
    """Search for a size with another count than the only one so far: by extrapolation, then at both ends."""
    (first, _), (last, only) = points[0], points[-1]
    if len(points) > CONSTANT_AFTER:
        return False
    there = _extrapolate(points[0], points[0], wanted, up=wanted > only)
    for guess in (*([there] if len(points) == 1 else []), 1, last * STRIDE, last + 1):
        low, high = (evaluated.floor, first) if guess < first else (last, evaluated.ceiling)
        if low < guess < high and evaluated.near(guess, low, high):
            return True
    return False


def _extrapolate(inner: Point, outer: Point, wanted: int, up: bool) -> int:
    """Return the size at which the power law through two points has the count `wanted`; if equal, a proportion."""
    exponent = 1.0 if inner == outer else _log_ratio(outer[1], inner[1]) / _log_ratio(outer[0], inner[0])
    further = log(2) if exponent == 0 else min(log(STRIDE), abs(_log_ratio(wanted, outer[1]) / exponent))
    return round(outer[0] * exp(further if up else -further))


def _interpolate(below: Point, above: Point, wanted: int) -> float:
    """Return the size between two points at which the power law through them has the count `wanted`."""
    share = _log_ratio(wanted, below[1]) / _log_ratio(above[1], below[1])
    return float(below[0] * (above[0] / below[0]) ** share)


def _log_ratio(one: int, other: int) -> float:
    return log(max(one, 1) / max(other, 1))

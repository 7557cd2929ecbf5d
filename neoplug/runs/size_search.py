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
SAME = 3  # sizes with the same count, after which it is taken as constant
CEILING = 2**40


def nearest(count: Callable[[int], int | None], wanted: int, start: int, likely: Collection[int] = ()) -> list[Point]:
    """Return the evaluated legal sizes with their counts, the nearest to `wanted` first.

    count   size -> its count, None where the size is illegal
    start   the first size to try
    likely  sizes to try where one is illegal, such as divisors
    """
    found = _Found(count, likely)
    found.near(start, 0, CEILING)
    for look in range(0 if _by_line(found, wanted) else EVALUATIONS):
        points = found.points()
        if not points or any(value == wanted for _, value in points):
            break
        if not (_closer(found, points, wanted, look) if _around(points, wanted) else _outward(found, points, wanted)):
            break
    return sorted(found.points(), key=lambda point: (abs(point[1] - wanted), point))


def _by_line(found: _Found, wanted: int) -> bool:
    """Evaluate where a straight line through two counts has `wanted`; return whether a third count is on the line."""
    if not (points := found.points()) or not found.near(2 * points[0][0], points[0][0], CEILING):
        return False
    (size, first), (other, second) = found.points()
    slope = (second - first) / (other - size)
    solution = size + (wanted - first) / slope if slope else 0.0
    if solution < 1 or not found.near(solution, 0, CEILING):
        return False
    if len(found.points()) == 2:  # one of the two is the nearest, if the line holds
        found.near(size + other, other, CEILING)
    third = [point for point in found.points() if point[0] not in (size, other)]
    is_near = any(abs(at - solution) <= NEIGHBOURS for at, _ in found.points())
    return is_near and any(count == first + slope * (at - size) for at, count in third)


class _Found:
    """The sizes evaluated so far, each once.

    floor, ceiling  no legal size is at or beyond
    closed          pairs of legal sizes with none between them
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


def _around(points: list[Point], wanted: int) -> list[tuple[Point, Point]]:
    """Return the pairs of neighbours with `wanted` between their counts."""
    return [pair for pair in pairwise(points) if min(pair[0][1], pair[1][1]) < wanted < max(pair[0][1], pair[1][1])]


def _closer(found: _Found, points: list[Point], wanted: int, look: int) -> bool:
    """Evaluate a size between two neighbours; return whether there was one."""
    for below, above in _around(points, wanted):
        low, high = below[0], above[0]
        if (low, high) in found.closed:
            continue
        bent = look % 3 == 2 or not (below[1] and above[1])  # a bent line would stick to an end
        guess = (low * high) ** 0.5 if bent else _on_line(below, above, wanted)
        if high - low > 1 and found.near(min(max(round(guess), low + 1), high - 1), low, high):
            return True
        found.closed.add((low, high))
    return False


def _outward(found: _Found, points: list[Point], wanted: int) -> bool:
    """Evaluate a size beyond those so far, on the side of `wanted`; return whether there may be more."""
    (_, first), (_, last) = points[0], points[-1]
    if first == last:
        return _anywhere(found, points, wanted)
    up = (last > first) == (wanted > last)
    inner, outer = points[-2:] if up else points[1::-1]
    low, high = (outer[0], found.ceiling) if up else (found.floor, outer[0])
    if inner[1] == outer[1] or high - low < 2:  # further out nothing changes, or is legal
        return False
    refused = found.ceiling < CEILING if up else found.floor > 0
    guess = (low + high) // 2 if refused else min(max(_beyond(inner, outer, wanted, up), low + 1), high - 1)
    if not found.near(guess, low, high):
        found.floor, found.ceiling = (found.floor, guess) if up else (guess, found.ceiling)
    return True


def _anywhere(found: _Found, points: list[Point], wanted: int) -> bool:
    """Search for a count other than the only one so far: where it is expected, then at both ends."""
    (first, _), (last, only) = points[0], points[-1]
    if len(points) > SAME:
        return False
    there = _beyond(points[0], points[0], wanted, up=wanted > only)
    for guess in (*([there] if len(points) == 1 else []), 1, last * STRIDE, last + 1):
        low, high = (found.floor, first) if guess < first else (last, found.ceiling)
        if low < guess < high and found.near(guess, low, high):
            return True
    return False


def _beyond(inner: Point, outer: Point, wanted: int, up: bool) -> int:
    """Return where the power law through two points reaches `wanted`; with one, it is proportional to the size."""
    steep = 1.0 if inner == outer else _log(outer[1], inner[1]) / _log(outer[0], inner[0])
    further = log(2) if steep == 0 else min(log(STRIDE), abs(_log(wanted, outer[1]) / steep))
    return round(outer[0] * exp(further if up else -further))


def _on_line(below: Point, above: Point, wanted: int) -> float:
    """Return the size at which the power law through two points has the count `wanted`."""
    share = _log(wanted, below[1]) / _log(above[1], below[1])
    return float(below[0] * (above[0] / below[0]) ** share)


def _log(one: int, other: int) -> float:
    return log(max(one, 1) / max(other, 1))

"""The verdict of one comparison, as the planned part of the summary decides it."""

from collections.abc import Iterable
from enum import StrEnum

from neoplug.studies.report.material import measure_of
from neoplug.studies.statistics import ALPHA
from neoplug.studies.summary_schema import ContrastResult


class Verdict(StrEnum):
    """What is shown of the difference of an arm and its control."""

    better = "better"
    worse = "worse"
    same = "equivalent"
    undecided = "undecided"
    other = "different"  # of a metric without a direction


def verdict_of(line: ContrastResult) -> Verdict:
    """Return the verdict of a comparison."""
    if line.equivalent:
        return Verdict.same
    if line.estimate is None or line.p_adjusted is None or line.p_adjusted > ALPHA:
        return Verdict.undecided
    gain = gain_of(line)
    if gain is None:
        return Verdict.other
    return Verdict.better if gain > 0 else Verdict.worse


def gain_of(line: ContrastResult) -> float | None:
    """Return the difference in the direction that is better; None where there is none, or no direction."""
    better = measure_of(line.metric).greater_is_better
    return None if better is None or line.estimate is None else line.estimate * (1 if better else -1)


def families(lines: Iterable[ContrastResult]) -> dict[tuple[str, str], list[ContrastResult]]:
    """Return the comparisons by family and metric."""
    found: dict[tuple[str, str], list[ContrastResult]] = {}
    for line in lines:
        found.setdefault((line.family, line.metric), []).append(line)
    return found

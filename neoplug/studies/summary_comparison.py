"""Reproduction of a study without its runs: the summary that its ledger gives, compared with the one that it has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neoplug.errors import UsageError
from neoplug.studies.directory import SUMMARY, StudyDir
from neoplug.studies.recompute import recompute
from neoplug.studies.record import read_summary

TOLERANCE = 1e-9  # of other versions of numpy and scipy, or another processor
SMALLEST = 1e-6  # a difference of smaller numbers is relative to this: they are themselves differences of larger ones
NAMES = ("family", "metric", "arm", "control", "reference", "over", "key")  # keys that say which line of a part it is
PARTS = ("contrasts", "robust", "arms", "references", "models", "ranks", "rates")


class Line(NamedTuple):
    """A line of a summary. `part`: its key in summary.json; `name`: what it is about, such as a comparison."""

    part: str
    name: str


@dataclass(frozen=True)
class Change:
    """A value of a summary that is another one when it is computed again.

    size  difference relative to the larger value; None where one is no number
    """

    key: str
    before: Any
    now: Any
    size: float | None

    @property
    def is_within(self) -> bool:
        """Whether it is within the tolerance."""
        return self.size is not None and self.size <= TOLERANCE


@dataclass(frozen=True)
class Recomputation:
    """A study's summary compared with what its ledger gives.

    lines           of both summaries
    changes         line -> its values that differ; lines that are equal have none
    contradictions  of ledger and table of results, in sentences
    """

    source: str
    lines: Sequence[Line]
    changes: Mapping[Line, Sequence[Change]]
    contradictions: Sequence[str]

    @property
    def is_equal(self) -> bool:
        """Whether all is equal."""
        return not self.changes and not self.contradictions

    @property
    def beyond(self) -> list[Line]:
        """The lines that are not within the tolerance."""
        return [line for line, changes in self.changes.items() if not all(change.is_within for change in changes)]

    @property
    def exit_code(self) -> int:
        """0: equal, or within the tolerance; 1: not."""
        return 1 if self.beyond or self.contradictions else 0

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """Part of the summary -> its number of lines, and of those that are equal."""
        lines, changed = (Counter(line.part for line in each) for each in (self.lines, self.changes))
        return {part: (count, count - changed[part]) for part, count in lines.items()}

    @property
    def verdict(self) -> str:
        """The verdict in a sentence."""
        if self.is_equal:
            count = sum(line.part == "contrasts" for line in self.lines)
            return f"Reproduced: the ledger gives the summary, with {count:,} contrast{'s' * (count != 1)}."
        if self.exit_code == 0:
            largest = max(change.size or 0.0 for changes in self.changes.values() for change in changes)
            return (
                f"Reproduced within {TOLERANCE:g}: the largest relative difference is {largest:.2g}, which other "
                "versions of numpy and scipy may give."
            )
        if not self.beyond:
            return "Not reproduced: the ledger gives the summary, and contradicts the table of results."
        lines, beyond = (Counter(line.part for line in each) for each in (self.lines, self.beyond))
        differing = ", ".join(f"{count:,} of {lines[part]:,} {part}" for part, count in beyond.items())
        return f"Not reproduced: the ledger gives another summary, in {differing}."


def recompute_study(path: Path) -> Recomputation:
    """Compute the summary of a study again, and compare; nothing is written.

    Raises:
        UsageError: a file is missing.
        DamageError: a file is damaged.
    """
    directory = StudyDir.open(path)
    summary = read_summary(path)
    if summary is None:
        raise UsageError(f"{path} has no {SUMMARY} to compare with\nfix: restore it from a copy")
    found = recompute(directory)
    if any(line.both_noises for line in summary.contrasts) and not found.has_documents:
        raise UsageError(
            f"{path} has neither documents.parquet nor a file of each job in documents/\n"
            f"why: {SUMMARY} has comparisons from the sums per document\nfix: restore it from a copy"
        )
    before, now = (_lines(json.loads(each.model_dump_json())) for each in (summary, found.summary))
    lines = [*dict.fromkeys([*before, *now])]
    changes = {line: [*_changes(before.get(line, {}), now.get(line, {}))] for line in lines}
    return Recomputation(str(path), lines, {line: some for line, some in changes.items() if some}, found.contradictions)


def _lines(summary: Mapping[str, Any]) -> dict[Line, dict[str, Any]]:
    """Return line -> its values by key, without what a fit by iteration gives; remarks are sentences, so no lines."""
    found = {}
    for part in PARTS:
        for line in summary[part]:
            name = ", ".join(line[key] for key in NAMES if key in line)
            left_out = (*NAMES, "seed_sd") if part == "models" else NAMES
            found[Line(part, name)] = dict(_flat({key: value for key, value in line.items() if key not in left_out}))
    return found


def _flat(values: Any, *above: str) -> Iterator[tuple[str, Any]]:
    """Yield each value of nested maps and lists with its key, such as both_noises.interval.0."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        yield ".".join(above), values
    for key, value in items or ():
        yield from _flat(value, *above, str(key))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    for key in {**before, **now}:
        if (one := before.get(key)) != (other := now.get(key)):
            yield Change(key, one, other, _size(one, other))


def _size(one: Any, other: Any) -> float | None:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (one, other)):
        return None
    return float(abs(one - other) / max(abs(one), abs(other), SMALLEST))

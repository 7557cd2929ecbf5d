"""The answers of a study in words: whether, by how much, how certain, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neoplug.studies.checks import FEW_SEEDS
from neoplug.studies.report import numbers
from neoplug.studies.report.material import Material, measure_of
from neoplug.studies.report.verdicts import Verdict, families, gain_of, verdict_of
from neoplug.studies.statistics.paired import detectable_effect, seeds_to_detect
from neoplug.studies.summary_schema import ContrastResult

NAMED = 4  # arms that a sentence names at most


@dataclass(frozen=True)
class Link:
    """A part of a sentence that leads to the runs of an arm."""

    text: str
    link: str


Part = str | Link
Sentence = Sequence[Part]


@dataclass(frozen=True)
class Answer:
    """The answer for one metric of one family.

    family, metric  the name of the contrast, the title of the metric
    robust          yes, no or undecided
    verdict         the answer as a sentence
    parts           heading -> sentences: by how much, how certain, what would change it
    """

    family: str
    metric: str
    robust: str
    verdict: Sentence
    parts: Sequence[tuple[str, Sequence[Sentence]]]


def answers_of(material: Material) -> list[Answer]:
    """Return the answers, in the order of the study file."""
    lines = families(material.summary.contrasts)
    sizes = {family: sum(len(part) for (name, _), part in lines.items() if name == family) for family, _ in lines}
    return [
        _answer(material, found.robust, lines[found.family, found.metric], sizes[found.family])
        for found in material.summary.robust
        if (found.family, found.metric) in lines
    ]


def _answer(material: Material, robust: str, lines: Sequence[ContrastResult], size: int) -> Answer:
    """Return the answer for comparisons; `size`: of their family, over all its metrics."""
    measure = measure_of(lines[0].metric)
    parts = {
        "By how much": _amounts(material, lines),
        "How certain": _certainty(material, robust, lines, size),
        "What would change it": _changes(material, robust, lines, size),
    }
    return Answer(
        family=lines[0].family,
        metric=numbers.capital(measure.title),
        robust=robust,
        verdict=_verdict(material, robust, lines),
        parts=[(heading, sentences) for heading, found in parts.items() if (sentences := list(found))],
    )


def _verdict(material: Material, robust: str, lines: Sequence[ContrastResult]) -> Sentence:
    """Return the sentence of the answer."""
    of = {verdict: [line for line in lines if verdict_of(line) is verdict] for verdict in Verdict}
    count, control = len(lines), _controls(lines)
    if robust == "yes":
        who = "The arm is" if count == 1 else f"All {count} arms are"
        return [f"{who} better than {control}."]
    if robust == "no":
        found: list[Part] = []
        if of[Verdict.worse]:
            found += [*_names(material, of[Verdict.worse]), f" {_is(of[Verdict.worse])} worse than "]
            found += [_controls(of[Verdict.worse])]
        if of[Verdict.same]:
            found += ["; " if found else "", *_names(material, of[Verdict.same])]
            controls = _controls(of[Verdict.same])
            found += [f" {_is(of[Verdict.same])} no different from {controls} by more than the margin"]
        rest = f"; {len(of[Verdict.better])} of {count} are better." if of[Verdict.better] else "."
        return [*found, rest]
    missing = sum(line.estimate is None for line in lines)
    better = len(of[Verdict.better])
    is_are = "is" if better < 2 else "are"
    known = f"{better or 'None'} of {numbers.of(count, 'arm')} {is_are} shown to be better than {control}"
    none = f"; {numbers.of(missing, 'comparison has', 'comparisons have')} no completed pair of runs" if missing else ""
    return [f"{known}, and none to be worse or equivalent{none}."]


def _amounts(material: Material, lines: Sequence[ContrastResult]) -> Iterator[Sentence]:
    """Yield sentences on the size of the differences."""
    measure = measure_of(lines[0].metric)
    known = [line for line in lines if line.estimate is not None]
    if not known:
        yield ["No seed has a completed run of both an arm and its control."]
        return
    unit, decimals = f" {measure.unit}" if measure.unit else "", _decimals(lines)
    if len(known) <= NAMED:
        for line in known:
            ends = f", 95 % interval {numbers.interval(line.interval, decimals, signed=True)}" if line.interval else ""
            value = f"{numbers.fixed(line.estimate, decimals, signed=True)}{unit}"
            yield [
                _link(material, line.arm),
                f" minus {line.control}: ",
                Link(value, _href(material, line.arm)),
                f"{ends}.",
            ]
        return
    ordered = sorted(known, key=lambda line: _size(line) or 0.0)
    low, high = ordered[0], ordered[-1]
    kind = "differences" if measure.greater_is_better is None else "gains"
    signed = (_size(low) or 0.0) < 0
    yield [
        f"The {kind} range from ",
        Link(f"{numbers.fixed(_size(low), decimals, signed=signed)}{unit}", _href(material, low.arm)),
        f" ({low.arm}) to ",
        Link(f"{numbers.fixed(_size(high), decimals, signed=signed)}{unit}", _href(material, high.arm)),
        f" ({high.arm}).",
    ]


def _certainty(material: Material, robust: str, lines: Sequence[ContrastResult], size: int) -> Iterator[Sentence]:
    """Yield sentences on how certain the differences are."""
    tested = [line for line in lines if line.p_adjusted is not None]
    if not tested:
        yield ["There is no test: it takes two seeds at which an arm and its control completed."]
        return
    decimals = _decimals(lines)
    worse = [line for line in tested if verdict_of(line) is Verdict.worse]
    shown = min(worse, key=_adjusted) if robust == "no" and worse else max(tested, key=_adjusted)
    if len(tested) > 1:
        yield [
            "The clearest loss is that of " if shown in worse else "The least certain difference is that of ",
            _link(material, shown.arm),
            f": {numbers.fixed(shown.estimate, decimals, signed=True)}, 95 % interval "
            f"{numbers.interval(shown.interval, decimals, signed=True)}, p = {numbers.p_value(shown.p_adjusted)} after "
            f"Holm’s adjustment for the {size} comparisons of the family.",
        ]
    else:
        adjusted = f" after Holm’s adjustment for {size} comparisons" if size > 1 else ""
        yield [f"p = {numbers.p_value(shown.p_adjusted)}{adjusted}, from {shown.n} pairs of runs."]
    both = [line.both_noises for line in lines if line.both_noises]
    if both:
        clear = sum(not (found.interval[0] <= 0 <= found.interval[1]) for found in both)
        documents = min(found.documents for found in both)
        yield [
            f"Over new seeds and new documents together ({documents} documents), {clear} of "
            f"{numbers.of(len(both), 'interval excludes', 'intervals exclude')} 0; these are not adjusted."
        ]
    if (seeds := len(material.study.seeds)) < FEW_SEEDS:
        yield [f"With {numbers.of(seeds, 'test seed')}, fewer than {FEW_SEEDS}, this supports no claim."]


def _changes(material: Material, robust: str, lines: Sequence[ContrastResult], size: int) -> Iterator[Sentence]:
    """Yield sentences on what would change the answer."""
    measure = measure_of(lines[0].metric)
    unit = f" {measure.unit}" if measure.unit else ""
    known = [line for line in lines if line.smallest_detectable]
    decimals = _decimals(lines)
    if known:
        low, high = (min(known, key=_detectable), max(known, key=_detectable))
        shown = [numbers.fixed(_detectable(line), decimals) for line in (low, high)]
        span = shown[0] if shown[0] == shown[1] else f"between {shown[0]} and {shown[1]}"
        few, most = min(line.n for line in known), max(line.n for line in known)
        seeds = numbers.of(most, "seed") if few == most else f"{few} to {most} seeds"
        which = "" if shown[0] == shown[1] else ", which differs by comparison"
        yield [f"With {seeds}, the smallest true difference found with probability 0.8 is {span}{unit}{which}."]
    margin = lines[0].margin
    open_lines = [line for line in known if verdict_of(line) is Verdict.undecided]
    if robust == "undecided" and margin and open_lines:
        needed = [_seeds(line, margin, size) for line in open_lines]
        if None in needed:
            yield [f"To find a difference of the margin, {numbers.plain(margin)}{unit}, would take over 1,000 seeds."]
        else:
            most = max(seeds for seeds in needed if seeds is not None)
            yield [
                f"If the spread stays as observed, {most} seeds find a difference of the margin, "
                f"{numbers.plain(margin)}{unit}, in each comparison that is open."
            ]
    elif robust == "undecided" and margin is None:
        yield ["A margin in the study file would let it conclude that differences are too small to matter."]
    if robust == "yes":
        within = f" or within ±{numbers.plain(margin)}{unit} of it" if margin else ""
        yield [
            f"One further arm whose gain is below 0{within} would make the answer “no”; arms not in the study are not "
            "covered."
        ]
    elif robust == "no":
        yield ["More seeds make the estimates finer; what is shown to be worse or equivalent stays an exception."]
    if material.missing:
        yield [f"{numbers.of(material.missing, 'test run has', 'test runs have')} not ended."]


def _seeds(line: ContrastResult, margin: float, size: int) -> int | None:
    """Return the seeds with which this comparison finds the margin, by the spread that it observed."""
    return seeds_to_detect(margin, _detectable(line) / detectable_effect(line.n, size), size)


def _detectable(line: ContrastResult) -> float:
    return line.smallest_detectable or 0.0


def _decimals(lines: Sequence[ContrastResult]) -> int:
    return numbers.decimals_for(numbers.half_width(line.interval) for line in lines)


def _size(line: ContrastResult) -> float | None:
    gain = gain_of(line)
    return line.estimate if gain is None else gain


def _adjusted(line: ContrastResult) -> float:
    return 1.0 if line.p_adjusted is None else line.p_adjusted


def _controls(lines: Sequence[ContrastResult]) -> str:
    names = list(dict.fromkeys(line.control for line in lines))
    return names[0] if len(names) == 1 else f"their controls ({lines[0].family})"


def _is(lines: Sequence[ContrastResult]) -> str:
    return "is" if len(lines) == 1 else "are"


def _names(material: Material, lines: Sequence[ContrastResult]) -> list[Part]:
    """Return the names of arms, or how many they are."""
    if len(lines) > NAMED:
        return [f"{len(lines)} arms"]
    found: list[Part] = []
    for at, line in enumerate(lines):
        found += ["" if at == 0 else " and " if at == len(lines) - 1 else ", ", _link(material, line.arm)]
    return found


def _link(material: Material, arm: str) -> Part:
    return Link(arm, _href(material, arm)) if arm in material.anchors else arm


def _href(material: Material, arm: str) -> str:
    return f"#{material.anchors[arm]}" if arm in material.anchors else ""

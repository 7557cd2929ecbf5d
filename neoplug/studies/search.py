"""Which runs a study asks for, as a function of the study and of its ledger.

No state is kept: resuming, an added arm and a changed margin are differences between what is asked for and done.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import fsum, isfinite, nan, prod
from typing import Literal

from neoplug.errors import RecipeError
from neoplug.registry.measures import MEASURES
from neoplug.studies.arms import Arm
from neoplug.studies.jobs import Identities, Job, Outcome
from neoplug.studies.study import Searched, Study, Trial

Phase = Literal["search", "extension", "test", "complete"]
Grid = dict[str, tuple[float, ...]]  # searched key -> its values, ascending, before `scale`


@dataclass(frozen=True)
class Agenda:
    """What a study asks for, given what is in its ledger.

    phase    the first one of which jobs are missing: `search` runs the grid, `extension` what was added to it
    jobs     every job asked for so far, done or not: search jobs first, then test jobs, each by arm, trial and seed
    missing  those that the ledger does not have; none when the study is complete
    grid     searched key -> its values so far, extensions included, before `scale`
    trials   arm -> each of its trials so far, at its own scale
    chosen   arm -> the trial of its test runs; empty until the search of all arms is done; None: none can be used
    """

    phase: Phase
    jobs: tuple[Job, ...]
    missing: tuple[Job, ...]
    grid: Mapping[str, tuple[float, ...]]
    trials: Mapping[str, tuple[Trial, ...]]
    chosen: Mapping[str, Trial | None]


def agenda(study: Study, done: Mapping[str, Outcome], identities: Identities) -> Agenda:
    """Return what the study asks for.

    done  the ledger: id -> its line

    Raises RecipeError where a recipe has mistakes; an extension whose recipe has some is not made.
    """
    keys = study.search.keys
    grid: Grid = {key: searched.values for key, searched in keys.items()}
    left = {key: searched.extend for key, searched in keys.items()}
    phase: Phase = "search"
    while True:
        trials = {arm.name: trials_of(study, arm, grid) for arm in study.arms}
        jobs = [*_search_jobs(study, trials, identities)]
        if missing := _missing(jobs, done):
            return Agenda(phase, tuple(jobs), missing, grid, trials, {})
        best = {arm.name: _best(study, arm, trials[arm.name], done, identities) for arm in study.arms}
        extended = _extended(study, grid, left, best.values(), identities)
        if extended == grid:
            break
        left = {key: count - (extended[key] != grid[key]) for key, count in left.items()}
        grid, phase = extended, "extension"
    chosen = {name: None if number is None else trials[name][number] for name, number in best.items()}
    jobs += [
        identities.job(arm, "test", seed, trial)
        for arm in study.arms
        if (trial := chosen[arm.name]) is not None
        for seed in study.seeds
    ]
    missing = _missing(jobs, done)
    return Agenda("test" if missing else "complete", tuple(jobs), missing, grid, trials, chosen)


def largest_agenda(study: Study) -> tuple[int, int, int]:
    """Return the numbers of search jobs, of those that extensions add at most, and of test jobs."""
    keys, seeds = study.search.keys, len(study.search.seeds)
    first = prod(len(searched.values) for searched in keys.values())
    most = prod(len(searched.values) + 2 * searched.extend for searched in keys.values())
    arms = len(study.arms)
    return arms * first * seeds, arms * (most - first) * seeds, arms * len(study.seeds)


def trials_of(study: Study, arm: Arm, grid: Grid) -> tuple[Trial, ...]:
    """Return the trials of an arm: the product of the values of all searched keys, times the arm's factors."""
    keys = study.search.keys
    scaled = [[_scaled(value, keys[key], arm) for value in values] for key, values in grid.items()]
    return tuple(dict(zip(grid, values, strict=True)) for values in product(*scaled))


def _scaled(value: float, searched: Searched, arm: Arm) -> float:
    factor = prod(levels.get(arm.levels[axis], 1.0) for axis, levels in searched.scale.items())
    return value if factor == 1 else _rounded(value * factor, searched)


def _rounded(value: float, searched: Searched) -> float:
    """Return a computed value: whole where all values of the file are; else without the noise of its last digits."""
    is_whole = all(isinstance(one, int) for one in searched.values)
    return round(value) if is_whole else float(f"{value:.6g}")


def _search_jobs(study: Study, trials: Mapping[str, Sequence[Trial]], identities: Identities) -> Iterator[Job]:
    for arm in study.arms:
        for trial in trials[arm.name]:
            for seed in study.search.seeds:
                yield identities.job(arm, "search", seed, trial)


def _missing(jobs: Sequence[Job], done: Mapping[str, Outcome]) -> tuple[Job, ...]:
    """Return the jobs that are not done, each once: two arms may have the same one."""
    return tuple({job.id: job for job in jobs if job.id not in done}.values())


def _best(
    study: Study, arm: Arm, trials: Sequence[Trial], done: Mapping[str, Outcome], identities: Identities
) -> int | None:
    """Return the number of an arm's best trial; of equally good ones the first, which has the smaller values.

    A trial of which a run did not complete cannot be the best. None: every trial is such.
    """
    if not study.search.keys:
        return 0
    metric = next(iter(study.metrics))
    sign = -1 if MEASURES[metric].greater_is_better else 1
    scores = {}
    for number, trial in enumerate(trials):
        runs = [done[identities.job(arm, "search", seed, trial).id] for seed in study.search.seeds]
        values = [run.values.get(f"validation_{metric}", nan) if run.status == "completed" else nan for run in runs]
        if all(map(isfinite, values)):
            scores[number] = sign * fsum(values) / len(values)
    return min(scores, key=lambda number: (scores[number], number), default=None)


def _extended(
    study: Study, grid: Grid, left: Mapping[str, int], best: Collection[int | None], identities: Identities
) -> Grid:
    """Return the grid with one more value beyond each edge at which the best trial of some arm lies.

    left  searched key -> how many extensions it may still have
    best  the number of the best trial, in the product of the grid, of each arm
    """
    places = [*product(*(range(len(values)) for values in grid.values()))]
    extended = dict(grid)
    for axis, (key, values) in enumerate(grid.items()):
        at = {places[number][axis] for number in best if number is not None}
        if left[key] and 0 in at:
            extended[key] = (*_beyond(study, grid, key, values[0], values[1], identities), *extended[key])
        if left[key] and len(values) - 1 in at:
            extended[key] = (*extended[key], *_beyond(study, grid, key, values[-1], values[-2], identities))
    return extended


def _beyond(study: Study, grid: Grid, key: str, edge: float, inner: float, identities: Identities) -> tuple[float, ...]:
    """Return the value that continues the ratio of a grid's last two at an edge; none where no recipe may have it."""
    value = _rounded(edge * edge / inner, study.search.keys[key])
    if value in (0, edge) or not _is_valid(study, {**grid, key: (value,)}, identities):
        return ()
    return (value,)


def _is_valid(study: Study, grid: Grid, identities: Identities) -> bool:
    """Return whether the recipes of all trials of all arms are valid."""
    try:
        for arm in study.arms:
            for trial in trials_of(study, arm, grid):
                identities.job(arm, "search", study.search.seeds[0], trial)
    except RecipeError:
        return False
    return True

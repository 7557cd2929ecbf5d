"""Checks of a study file's sections against each other: metrics, contrasts, search, names of columns, size."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from math import prod

from neoplug.errors import Path as Key
from neoplug.errors import Problem, did_you_mean
from neoplug.recipe.source import joined
from neoplug.recipe.tree import Tree
from neoplug.registry.measures import MEASURES, RANKING
from neoplug.studies.arms import OWNED, Arms, has_levels, recipe_key
from neoplug.studies.schema import Contrast, StudyFile

# The columns of the tables that belong to no axis and no searched key.
COLUMNS = (
    *("seed", "kind", "status", "reason", "trials", "trainable_parameters", "seconds", "tokens", "run"),
    *("total_parameters", "answer_tokens", "peak_memory_bytes", "id", "reference"),
    *("half", "document", "number"),
    *MEASURES,
)
MAX_JOBS = 100_000
FEW_SEEDS = 5


def column_of(key: str, keys: Collection[str]) -> str:
    """Return the column of a searched key: its last part, as `learning_rate`; the whole where that is ambiguous."""
    last = key.rpartition(".")[2]
    others = [other.rpartition(".")[2] for other in keys if other != key]
    return key if last in (*COLUMNS, *others) else last


def contrast_name(contrast: Contrast) -> str:
    """Return the name of a contrast: the given one, else its control, as `loss=ce`."""
    return contrast.name or ", ".join(f"{axis}={level}" for axis, level in contrast.control.items())


class Checks:
    """The checks of a study file.

    faulty    sections with mistakes in themselves: `file` has stand-ins for them, and nothing is checked against these
    arms      built of the file's sections
    searched  searched key -> its path in a recipe
    problems  the mistakes found
    """

    def __init__(self, file: StudyFile, tree: Tree, base: Tree, faulty: Collection[str]) -> None:
        self._file, self._tree, self._base = file, tree, base
        self.arms = Arms(file, tree, base)
        self.searched: dict[str, Key] = {}
        has_axes, has_search = "axes" not in faulty, "search" not in faulty
        self.has_arms = has_axes and not {"zip", "exclude", "arms"} & {*faulty} and not self.arms.problems
        self.problems = [*self.arms.problems] if has_axes else []
        if "seeds" not in faulty:
            self.problems += self._twice(file.seeds, ("seeds",), "it would be the same run")
        if "metrics" not in faulty:
            self.problems += self._metrics()
        if has_search:
            self.problems += [*self._search(), *(self._tuning_seeds() if "seeds" not in faulty else ())]
        if has_axes:
            self.problems += [*self._contrasts(faulty), *(self._scales() if has_search else ()), *self._columns()]
        if self.has_arms:
            self.problems += [*self._no_pairs(), *self._set_twice(), *self._size()]

    def _metrics(self) -> Iterator[Problem]:
        for name in self._file.metrics:
            if name in RANKING or (name.startswith("probes.") and name.count(".") >= 2):
                continue
            what = f"there is no metric `{name}`{did_you_mean(name, RANKING)}"
            why = "neither direction of it is better" if name in MEASURES else ""
            if name in MEASURES:
                what = f"arms cannot be compared by `{name}`"
            fix = f"choose of {', '.join(RANKING)}, or a number of a probe: probes.NAME.KEY"
            yield self._at_key(what, ("metrics", name), why, fix)
        first = next(iter(self._file.metrics))
        if first.startswith("probes."):
            why = "a probe measures all held-out text at once, so there is no half of it to choose on"
            fix = f"begin with one of {', '.join(RANKING)}"
            yield self._at_key(
                "the first metric chooses, which a number of a probe cannot do", ("metrics", first), why, fix
            )

    def _contrasts(self, faulty: Collection[str]) -> Iterator[Problem]:
        """Yield the mistakes in the names of contrasts, and in the names that they use."""
        names: list[str] = []
        for number, contrast in enumerate(self._file.contrasts):
            path: Key = ("contrasts", number)
            for key, levels in (("control", contrast.control), ("arms", contrast.arms)):
                for axis, wanted in levels.items():
                    yield from self.arms.unknown(axis, wanted, (*path, key, axis))
            for at, metric in enumerate(contrast.metrics):
                if metric not in self._file.metrics and "metrics" not in faulty:
                    what = f"`{metric}` is none of the study's metrics{did_you_mean(metric, self._file.metrics)}"
                    yield Problem(what, "", "add it to `metrics`, or leave it out here", (*path, "metrics", at))
            yield from self._twice(contrast.metrics, (*path, "metrics"), "it would be the same comparison")
            if (name := contrast_name(contrast)) in names:
                what = f"two contrasts are named `{name}`"
                yield Problem(what, "results are listed by it", "give them a `name` of their own", path)
            names.append(name)

    def _no_pairs(self) -> Iterator[Problem]:
        """Yield a problem for each contrast that compares nothing."""
        arms = [dict(arm.levels) for arm in self.arms.arms]
        for number, contrast in enumerate(self._file.contrasts):
            if any(problem.path[:2] == ("contrasts", number) for problem in self.problems):
                continue
            compared = [levels for levels in arms if has_levels(levels, contrast.arms)]
            if not any(
                levels | contrast.control in arms and levels != levels | contrast.control for levels in compared
            ):
                what = "this contrast compares no arm with a control"
                why = "a control has the levels of `control`, and of the other axes the levels of the arm"
                yield Problem(what, why, path=("contrasts", number))

    def _search(self) -> Iterator[Problem]:
        """Yield the mistakes in the searched keys and their seeds."""
        stated = {key: searched.seeds for key, searched in self._file.search.items() if searched.seeds}
        for key in self._file.search:
            path, problem = recipe_key(key, self._base)
            if problem:
                yield replace(problem, mark=self._tree.mark(("search", key)))
            elif path in self.searched.values():
                yield self._at_key(f"`{joined(path)}` is searched twice", ("search", key))
            else:
                self.searched[key] = path
        for key, seeds in stated.items():
            yield from self._twice(seeds, ("search", key, "seeds"), "it would be the same run")
        if self._file.search and not stated:
            fix = "add seeds that are not those of the study, as `seeds: [100, 101]`"
            yield Problem("the search has no seeds to tune on", "", fix, ("search", next(iter(self._file.search))))
        for (key, seeds), (other, theirs) in combinations(stated.items(), 2):
            if sorted(seeds) != sorted(theirs):
                what = f"the searched keys `{key}` and `{other}` have different seeds"
                yield Problem(what, "a trial sets all of them", "state the seeds once", ("search", other, "seeds"))

    def _tuning_seeds(self) -> Iterator[Problem]:
        for key, searched in self._file.search.items():
            for at, seed in enumerate(searched.seeds or ()):
                if seed in self._file.seeds:
                    what = f"the seed {seed} is one of the study's `seeds`, which test what the search chooses"
                    why = "what is chosen on a seed looks better on it than on others"
                    yield Problem(what, why, "tune on other seeds", ("search", key, "seeds", at))

    def _scales(self) -> Iterator[Problem]:
        for key, searched in self._file.search.items():
            for axis, factors in searched.scale.items():
                for level in factors:
                    yield from self.arms.unknown(axis, level, ("search", key, "scale", axis), level)

    def _set_twice(self) -> Iterator[Problem]:
        """Yield a problem for each searched key that a level sets."""
        marks = self.arms.set_keys()
        for key, path in self.searched.items():
            if mark := marks.get(path):
                what = f"a level sets `{key}`, which is searched"
                yield Problem(what, "each run has the value of its trial", "leave it out of one of them", mark=mark)

    def _columns(self) -> Iterator[Problem]:
        searched = [column_of(key, self._file.search) for key in self._file.search]
        for axis in self._file.axes:
            if axis in OWNED:  # which has a problem already
                continue
            if axis in (*COLUMNS, "learning_rate", *searched) or axis.startswith("validation_"):
                why = "the table of results has another column of this name"
                yield self._at_key(f"an axis cannot be named `{axis}`", ("axes", axis), why)

    def _size(self) -> Iterator[Problem]:
        searched = self._file.search.values()
        tuning = next((len(one.seeds) for one in searched if one.seeds), 0)
        trials = prod(len(one.values) + 2 * one.extend for one in searched)
        if (jobs := len(self.arms.arms) * (trials * tuning + len(self._file.seeds))) > MAX_JOBS:
            what = f"the study has up to {jobs:,} runs, but at most {MAX_JOBS:,} are possible"
            yield Problem(what, "", "leave out levels, values or seeds", ("seeds",))

    def _at_key(self, what: str, path: Key, why: str = "", fix: str = "") -> Problem:
        return Problem(what, why, fix, path, self._tree.mark(path))

    def _twice(self, values: Sequence[int | str], path: Key, why: str) -> Iterator[Problem]:
        for at, value in enumerate(values):
            if value in values[:at]:
                yield Problem(f"`{path[-1]}` has {value} twice", why, "keep one of them", (*path, at))

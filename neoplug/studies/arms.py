"""The arms of a study: each is a recipe that differs from the base by one level of every axis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import prod

from neoplug.errors import Mark, Problem, did_you_mean
from neoplug.errors import Path as Key
from neoplug.recipe.schema import Recipe, is_plugin_map
from neoplug.recipe.source import joined, split
from neoplug.recipe.tree import Node, Tree
from neoplug.studies.schema import StudyFile

MAX_ARMS = 1_000
# Keys of a recipe that no arm and no override sets, and why.
OWNED = {
    "seed": "`seeds` of the study has the seeds",
    "output_dir": "the runs of a study are in its folder",
    "report_to": "the runs of a study report to the same trackers",
    "trackers": "the runs of a study report to the same trackers",
    "reference": "it says what one recipe reproduces, and an arm is another recipe",
    "format": "the arms are recipes of one format",
    "extends": "the arms change one base",
}
SECTIONS = tuple(name for name in Recipe.model_fields if name not in OWNED)
Changes = tuple[tuple[Key, Node], ...]


@dataclass(frozen=True)
class Arm:
    """One arm.

    levels   axis -> level, in the order of the axes in the study file
    changes  what it changes in the base: the path of a key, and the node that is merged there; short paths first
    """

    levels: Mapping[str, str]
    changes: Changes = field(default=(), repr=False, compare=False)

    @property
    def name(self) -> str:
        """The levels in the order of the axes, as `dora/neo`."""
        return "/".join(self.levels.values())


class Arms:
    """The arms of a study file, made of its sections `axes`, `zip`, `exclude` and `arms`.

    axes      axis -> level -> its node; levels that only further arms have come last
    arms      all arms: those of the product, then the further ones
    problems  the mistakes found
    """

    def __init__(self, file: StudyFile, tree: Tree, base: Tree) -> None:
        self._file, self._tree, self._base = file, tree, base
        self.axes = {axis: self._nodes(("axes", axis)) for axis in file.axes}
        self._in_product = {axis: [*levels] for axis, levels in self.axes.items()}
        self.problems = [*self._axis_names()]
        further = [levels for number in range(len(file.arms)) if (levels := self._further(number))]
        self._changes = {
            (axis, level): self._changes_of(axis, node)
            for axis, nodes in self.axes.items()
            for level, node in nodes.items()
        }
        chosen = self._without_excluded(self._product(self._groups()))
        for number, levels in enumerate(further):
            if levels in chosen:
                what = f"the arm `{'/'.join(levels.values())}` is there already"
                self.problems.append(Problem(what, "", "leave it out", ("arms", number)))
            chosen.append(levels)
        self.arms = [self._arm(levels) for levels in chosen]

    def unknown(self, axis: str, levels: str | Sequence[str], path: Key, *key: str) -> Iterator[Problem]:
        """Yield a problem where there is no such axis, or for each of `levels` that it does not have.

        path  the place of the axis in the file; the levels are its value, or the key `key` below it
        """
        if axis not in self.axes:
            what = f"there is no axis `{axis}`{did_you_mean(axis, self.axes)}"
            yield Problem(what, "", f"the axes are {', '.join(self.axes)}", path, self._tree.mark(path))
            return
        places = (
            [(levels, (*path, *key))]
            if isinstance(levels, str)
            else [(one, (*path, n)) for n, one in enumerate(levels)]
        )
        for level, place in places:
            if level not in self.axes[axis]:
                what = f"the axis `{axis}` has no level `{level}`{did_you_mean(level, self.axes[axis])}"
                mark = self._tree.mark(place, value=not key)
                yield Problem(what, "", f"its levels are {', '.join(self.axes[axis])}", place, mark)

    def set_keys(self) -> dict[Key, Mark]:
        """Return each key of a recipe that a level of some arm sets, with one place that does."""
        changes = [change for arm in self.arms for change in arm.changes]
        return {key: node.key for path, node in changes for key in _set_keys(path, node)}

    def _nodes(self, path: Key) -> dict[str, Node]:
        node = self._tree.node(path)
        return {str(level): inner for level, inner in node.items()} if node else {}

    def _axis_names(self) -> Iterator[Problem]:
        for axis, levels in self.axes.items():
            if axis in OWNED:
                yield Problem(f"a study does not vary `{axis}`", OWNED[axis], mark=self._tree.mark(("axes", axis)))
            for level, node in levels.items():
                yield from _level_name(level, node)

    def _groups(self) -> list[list[dict[str, str]]]:
        """Return, for each axis or axes that vary together, the combinations of their levels."""
        together: dict[str, list[str]] = {}
        for number, axes in enumerate(self._file.zip):
            if problems := [*self._zip_problems(axes, ("zip", number), together)]:
                self.problems += problems
            else:
                together |= dict.fromkeys(axes, axes)
        groups = dict.fromkeys(tuple(together.get(axis, [axis])) for axis in self.axes)
        return [
            [dict(zip(axes, row, strict=True)) for row in zip(*(self._in_product[axis] for axis in axes), strict=True)]
            for axes in groups
        ]

    def _zip_problems(self, axes: list[str], path: Key, together: Mapping[str, list[str]]) -> Iterator[Problem]:
        if len(axes) < 2:
            yield Problem("axes vary together with others: this names too few", "", "name two or more", path)
        for at, axis in enumerate(axes):
            if axis not in self.axes:
                yield from self.unknown(axis, (), (*path, at))
            elif axis in together or axis in axes[:at]:
                yield Problem(f"`zip` has the axis `{axis}` twice", "", "keep one of them", (*path, at))
        counts = {axis: len(self._in_product[axis]) for axis in axes if axis in self.axes}
        if len(set(counts.values())) > 1:
            what = "axes that vary together have as many levels each, but "
            what += " and ".join(f"`{axis}` has {count}" for axis, count in counts.items())
            yield Problem(what, "the first level of one belongs to the first of the other, and so on", path=path)

    def _product(self, groups: list[list[dict[str, str]]]) -> list[dict[str, str]]:
        """Return the levels of all combinations, in the order of the axes; none where there are too many."""
        if (count := prod(map(len, groups))) > MAX_ARMS:
            what = f"there are {count:,} arms, but at most {MAX_ARMS:,} are possible"
            self.problems.append(Problem(what, path=("axes",)))
            return []
        combined = [{axis: level for part in parts for axis, level in part.items()} for parts in product(*groups)]
        return [{axis: levels[axis] for axis in self.axes} for levels in combined]

    def _without_excluded(self, arms: list[dict[str, str]]) -> list[dict[str, str]]:
        left = arms
        for number, entry in enumerate(self._file.exclude):
            path: Key = ("exclude", number)
            unknown = [
                problem for axis, levels in entry.items() for problem in self.unknown(axis, levels, (*path, axis))
            ]
            self.problems += unknown
            if arms and not unknown and not any(has_levels(levels, entry) for levels in arms):
                fix = "leave it out; what `arms` adds is never excluded"
                self.problems.append(Problem("this excludes no arm", "", fix, path))
            left = left if unknown else [levels for levels in left if not has_levels(levels, entry)]
        if arms and not left and not self._file.arms:
            self.problems.append(Problem("`exclude` leaves no arm", path=("exclude",)))
        return left

    def _further(self, number: int) -> dict[str, str]:
        """Return the levels of a further arm, and add its new ones to `axes`; empty where it has mistakes."""
        entry, path = self._file.arms[number], ("arms", number)
        levels, problems = dict[str, str](), list[Problem]()
        for axis, level in entry.items():
            place = (*path, axis)
            new = {} if isinstance(level, str) else self._nodes(place)
            levels[axis] = level if isinstance(level, str) else next(iter(new), "")
            if isinstance(level, str) or axis not in self.axes:
                problems += self.unknown(axis, level if isinstance(level, str) else (), place)
            elif len(new) != 1:
                problems.append(Problem("an arm has one level of an axis", "", "write {NEW_LEVEL: value}", place))
            elif levels[axis] in self.axes[axis]:
                fix = f"write {axis}: {levels[axis]}, or give the new level another name"
                what = f"the axis `{axis}` has a level `{levels[axis]}` already"
                problems.append(Problem(what, "", fix, mark=new[levels[axis]].key))
            else:
                problems += _level_name(levels[axis], new[levels[axis]])
                self.axes[axis] |= new
        if missing := [axis for axis in self.axes if axis not in entry]:
            what = f"this arm has no level of {', '.join(missing)}"
            problems.append(Problem(what, "an arm has one of each axis", "write {axis: level, ...}", path))
        self.problems += problems
        return {} if problems else {axis: levels[axis] for axis in self.axes}

    def _arm(self, levels: dict[str, str]) -> Arm:
        own = [(item, change) for item in levels.items() for change in self._changes[item]]
        for one, other in combinations(own, 2):
            self.problems += [problem for problem in _both_set(one[1], other[1]) if problem not in self.problems]
        return Arm(levels, tuple(sorted((change for _, change in own), key=lambda change: len(change[0]))))

    def _changes_of(self, axis: str, node: Node) -> Changes:
        """Return what a level changes in the base."""
        if axis in SECTIONS:
            return (((axis,), node),)
        if node.value is None:
            what = f"a level of `{axis}`, which is no section of a recipe, is a map of keys of one"
            self.problems.append(Problem(what, "", "write {} if it changes nothing", mark=node.key))
        changes = []
        for dotted, inner in node.value.items() if isinstance(node.value, dict) else ():
            path, problem = recipe_key(dotted, self._base)
            if problem:
                self.problems.append(replace(problem, mark=inner.key))
            else:
                changes.append((path, inner))
        return tuple(changes)


def recipe_key(dotted: str, base: Tree) -> tuple[Key, Problem | None]:
    """Return the path of a key that a study changes in its base, and why it cannot: None where it can."""
    try:
        path = split(dotted, base.root.value)
    except ValueError:
        fix = "join keys by dots, as train.max_steps, and write one that has dots itself in quotes"
        return (), Problem(f"`{dotted}` is no key of a recipe", "", fix)
    why = OWNED.get(str(path[0]))
    return path, Problem(f"a study does not vary `{dotted}`", why) if why else None


def _level_name(level: str, node: Node) -> Iterator[Problem]:
    if "/" in level or not level.isprintable():
        why = "the name of an arm has its levels, with / between them, in one line"
        yield Problem(f"a level cannot be named `{level}`", why, mark=node.key)


def _both_set(one: tuple[Key, Node], other: tuple[Key, Node]) -> Iterator[Problem]:
    """Yield a problem where two changes of an arm set the same key of its recipe."""
    if both := {*_set_keys(*one)} & {*_set_keys(*other)}:
        first, second = sorted((one[1].key, other[1].key), key=lambda mark: (mark.line, mark.column))
        what = f"an arm has `{joined(min(both))}` of two axes; the other is in line {first.line}"
        fix = "set it by one axis, or exclude the arms with both levels"
        yield Problem(what, "", fix, mark=second)


def _set_keys(path: Key, node: Node) -> Iterator[Key]:
    """Yield the keys that merging `node` at `path` sets: its leaves, and maps of plugins, which it replaces."""
    inner = node.value if isinstance(node.value, dict) else {}
    if is_plugin_map(path) or not inner:
        yield path
    for key, below in inner.items():
        yield from _set_keys((*path, key), below)


def has_levels(levels: Mapping[str, str], wanted: Mapping[str, str | Sequence[str]]) -> bool:
    """Return whether an arm has the level, or one of the levels, that is wanted of each axis named."""
    return all(levels[axis] in ([one] if isinstance(one, str) else one) for axis, one in wanted.items())

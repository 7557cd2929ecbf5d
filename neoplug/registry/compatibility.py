"""What was measured of adapters: with which loading, on which family of models, each works; and what that forbids.

A package of plugins may include a file `matrix.json`. It is read without importing the package, and what it
knows not to work is refused before a model is loaded. What it does not name is not known, and may be tried.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.environment.info import version_of
from neoplug.errors import Problem, RecipeError
from neoplug.registry import Entry, path_of

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe

FILE = "matrix.json"
PLAIN = "plain"  # the loading of a student that no plugin under `load` changes
REFUSED = "refused"
FAILS = {  # stage -> what the adapter then does, or does not; what it refuses itself needs no second refusal
    REFUSED: "refuses",
    "attach": "cannot be put on",
    "train": "does not train on",
    "save": "is not saved so that peft loads it on",
}


@dataclass(frozen=True)
class Finding:
    """Why an adapter does not work in some cells.

    at       the stage at which it fails, of FAILS
    why      the reason
    where    loading -> families
    options  with which it works there all the same; empty: none are known
    """

    at: str
    why: str
    where: dict[str, list[str]]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An adapter: its kind, what it trains on the first family, and where it does not work; elsewhere it does."""

    kind: str
    parameters: int
    findings: list[Finding]

    def finding(self, loading: str, family: str) -> Finding | None:
        """Return why it does not work there, None where it does."""
        return next((found for found in self.findings if family in found.where.get(loading, ())), None)


@dataclass(frozen=True)
class Matrix:
    """What was measured, of adapters without options.

    versions  package -> its version
    unless    options of which one that is not at its default makes another case, which was not measured
    """

    versions: dict[str, str]
    device: str
    unless: list[str]
    loadings: list[str]
    families: list[str]
    rows: dict[str, Row]

    @classmethod
    def read(cls, file: Path) -> Matrix:
        """Read a file that `text` wrote."""
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = {
            name: Row(row["kind"], row["parameters"], [Finding(**finding) for finding in row["findings"]])
            for name, row in found.pop("rows").items()
        }
        return cls(rows=rows, **found)

    def works(self, adapter: str, loading: str) -> list[str]:
        """Return the families on which an adapter works."""
        return [family for family in self.families if self.rows[adapter].finding(loading, family) is None]

    def nearest(self, adapter: str, loading: str, family: str) -> tuple[list[str], list[str]]:
        """Return the loadings with which the adapter works on this family, and adapters that work as it is loaded.

        Three of these: those of its kind first, then who trains about as many parameters, then who works in more cells.
        """
        row = self.rows[adapter]
        others = [other for other in self.loadings if row.finding(other, family) is None]
        able = [name for name, each in self.rows.items() if each.finding(loading, family) is None]

        def distance(name: str) -> tuple[bool, float, int, str]:
            cells, other = sum(len(self.works(name, each)) for each in self.loadings), self.rows[name]
            return other.kind != row.kind, round(abs(log(other.parameters / row.parameters)), 1), -cells, name

        return others, sorted(able, key=distance)[:3]

    def differing(self) -> dict[str, tuple[str, str | None]]:
        """Return package -> (version measured, version here; None where it is not installed), where these differ."""
        here = {name: version_of(name) for name in self.versions}
        return {name: (then, here[name]) for name, then in self.versions.items() if here[name] != then}


@cache
def matrix_of(package: str) -> Matrix | None:
    """Return the matrix of a top-level package, which is found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () if (file := Path(folder) / FILE).is_file()]
    return Matrix.read(files[0]) if files else None


def matrix_for(entry: Entry) -> Matrix | None:
    """Return the matrix row of a plugin, None where its package has none."""
    found = None if entry.file else matrix_of(entry.target.partition(":")[0].partition(".")[0])
    return found if found and entry.name in found.rows else None


def matrices(entries: Iterable[Entry]) -> Iterator[Matrix]:
    """Yield each matrix once that speaks of these plugins."""
    seen: list[Matrix] = []
    for entry in entries:
        found = matrix_for(entry)
        if found and not any(found is other for other in seen):
            seen.append(found)
            yield found


def validate_compatibility(checked: ResolvedRecipe, family: str) -> None:
    """Refuse an adapter that was measured not to work on such a student; the adapter's own refusals are left to it.

    family  the `model_type` of the student's configuration
    Raises RecipeError.
    """
    for section, name in checked.plugins.named("add_adapter"):
        entry = checked.entries[section, name]
        matrix, loading = matrix_for(entry), loading_of(checked)
        if matrix is None or _is_another_case(matrix, checked.plugins.section(section)[name]):
            continue
        found = matrix.rows[entry.name].finding(loading, family)
        if found and found.at != REFUSED:
            raise RecipeError([_problem(matrix, found, entry.name, loading, family, path_of(section, name))])


def loading_of(checked: ResolvedRecipe) -> str:
    """Return what the student's loading is called in a matrix: plugins under `load` by their own names."""
    names = sorted(entry.name for (section, _), entry in checked.entries.items() if section == "student.load")
    return "+".join(names) or PLAIN


def _is_another_case(matrix: Matrix, plugin: Any) -> bool:
    defaults = {option.name: option.default for option in fields(plugin)}
    return any(name in defaults and getattr(plugin, name) != defaults[name] for name in matrix.unless)


def _problem(matrix: Matrix, found: Finding, adapter: str, loading: str, family: str, path: tuple[Any, ...]) -> Problem:
    loaded = "" if loading == PLAIN else f" loaded by `{loading}`"
    what = f"`{adapter}` {FAILS[found.at]} models of the family `{family}`{loaded}"
    return Problem(what, f"{found.why} ({measured_with(matrix)})", _fix(matrix, found, adapter, loading, family), path)


def summary(matrix: Matrix, adapter: str, loading: str) -> str:
    """Return in words on which families an adapter works with a loading."""
    works = matrix.works(adapter, loading)
    others = [family for family in matrix.families if family not in works]
    if not works or not others:
        return "all" if works else "none"
    return f"all but {', '.join(others)}" if len(others) <= len(works) else f"only {', '.join(works)}"


def reasons(matrix: Matrix, adapter: str) -> Iterator[str]:
    """Yield a line for each finding on an adapter."""
    for found in matrix.rows[adapter].findings:
        groups: dict[tuple[str, ...], list[str]] = {}
        for loading, families in found.where.items():
            groups.setdefault(tuple(families), []).append(loading)
        places = "; ".join(f"{_families(matrix, families)} ({', '.join(ways)})" for families, ways in groups.items())
        works = f"; with `{_shown(found.options)}` it works" if found.options else ""
        yield f"{FAILS[found.at]} {places}: {found.why}{works}"


def _families(matrix: Matrix, families: tuple[str, ...]) -> str:
    return "every family" if len(families) == len(matrix.families) else ", ".join(families)


def measured_on(matrix: Matrix) -> str:
    """Return with what and where it was measured, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in matrix.versions.items())
    return f"Measured with {versions}, on {matrix.device}"


def measured_with(matrix: Matrix) -> str:
    """Return the versions of a measurement in words, and which of them are others here."""
    versions = ", ".join(f"{name} {version}" for name, version in matrix.versions.items())
    others = [f"{name} {here}" if here else f"no {name}" for name, (_, here) in matrix.differing().items()]
    return f"measured with {versions}{'; here ' if others else ''}{', '.join(others)}"


def _fix(matrix: Matrix, found: Finding, adapter: str, loading: str, family: str) -> str:
    others, able = matrix.nearest(adapter, loading, family)
    ways = [f"write `{adapter}: {_shown(found.options)}`"] if found.options else []
    if PLAIN in others:
        ways.append("load the student unquantised")
    elif others:
        ways.append(f"load the student by {' or '.join(f'`{other}`' for other in others)}")
    if able:
        ways.append(f"name {' or '.join(f'`{name}`' for name in able)}")
    return "; or ".join(ways) or "take a model of another family"


def _shown(options: dict[str, Any]) -> str:
    written = (f"{name}: [{', '.join(value)}]" if isinstance(value, list) else f"{name}: {value}"
               for name, value in options.items())  # fmt: skip
    return f"{{{', '.join(written)}}}"

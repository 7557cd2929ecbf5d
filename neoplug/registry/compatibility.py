"""Measured compatibility of adapters: on which model families each works, for each way to load the student.

A package of plugins may include the measurements as `matrix.json`, which is read without importing the package. A
combination that was measured to fail is refused before a model is loaded; one that was not measured is allowed.

Loading: the names of the student's `load` plugins, as `nf4`, or `plain`. Family: the `model_type` of a configuration.
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
PLAIN = "plain"  # the loading of a student without `load` plugins
REFUSED = "refused"  # the stage of an adapter that raises an error itself
FAILS = {  # stage at which an adapter fails -> the verb of a message, "ADAPTER ... FAMILIES"
    REFUSED: "refuses",
    "attach": "cannot be added to",
    "train": "does not train on",
    "save": "is not saved in files that peft loads on",
}


@dataclass(frozen=True)
class Finding:
    """Why an adapter does not work in some cells of the matrix.

    at       the stage at which it fails, a key of FAILS
    why      the reason
    where    the cells: loading -> families
    options  options with which it works in these cells; empty where none are known
    """

    at: str
    why: str
    where: dict[str, list[str]]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The measurements of an adapter; it works in every cell that no finding names.

    kind        the adapter's group, for suggestions of similar adapters
    parameters  number of trainable parameters on the first family
    """

    kind: str
    parameters: int
    findings: list[Finding]

    def finding(self, loading: str, family: str) -> Finding | None:
        """Return why the adapter does not work in a cell; None where it works."""
        return next((finding for finding in self.findings if family in finding.where.get(loading, ())), None)


@dataclass(frozen=True)
class Matrix:
    """A compatibility matrix: measurements of adapters with default options, by loading and family.

    versions  package -> version in the measurement
    device    on which it was measured
    unless    options that must have their default: an adapter with another value was not measured
    rows      adapter -> its measurements
    """

    versions: dict[str, str]
    device: str
    unless: list[str]
    loadings: list[str]
    families: list[str]
    rows: dict[str, Row]

    @classmethod
    def read(cls, file: Path) -> Matrix:
        """Read a matrix.json."""
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows = {
            name: Row(row["kind"], row["parameters"], [Finding(**finding) for finding in row["findings"]])
            for name, row in stored.pop("rows").items()
        }
        return cls(rows=rows, **stored)

    def works(self, adapter: str, loading: str) -> list[str]:
        """Return the families on which an adapter works with a loading."""
        return [family for family in self.families if self.rows[adapter].finding(loading, family) is None]

    def nearest(self, adapter: str, loading: str, family: str) -> tuple[list[str], list[str]]:
        """Return alternatives to a cell that does not work: (other loadings, up to three other adapters).

        These adapters work with the same loading and family. They are sorted: the same kind first, then a similar
        number of trainable parameters, then more cells in which they work.
        """
        row = self.rows[adapter]
        loadings = [other for other in self.loadings if row.finding(other, family) is None]
        adapters = [name for name, other in self.rows.items() if other.finding(loading, family) is None]

        def distance(name: str) -> tuple[bool, float, int, str]:
            cells, other = sum(len(self.works(name, each)) for each in self.loadings), self.rows[name]
            return other.kind != row.kind, round(abs(log(other.parameters / row.parameters)), 1), -cells, name

        return loadings, sorted(adapters, key=distance)[:3]

    def differing(self) -> dict[str, tuple[str, str | None]]:
        """Return the packages whose version differs from the measured one: name -> (measured, installed or None)."""
        installed = {name: version_of(name) for name in self.versions}
        return {
            name: (measured, installed[name]) for name, measured in self.versions.items() if installed[name] != measured
        }


@cache
def matrix_of(package: str) -> Matrix | None:
    """Return the matrix in a top-level package; None without one. The package is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () if (file := Path(folder) / FILE).is_file()]
    return Matrix.read(files[0]) if files else None


def matrix_for(entry: Entry) -> Matrix | None:
    """Return the matrix that has a row for this plugin; None for a local file or a plugin that was not measured."""
    matrix = None if entry.file else matrix_of(entry.target.partition(":")[0].partition(".")[0])
    return matrix if matrix and entry.name in matrix.rows else None


def matrices(entries: Iterable[Entry]) -> Iterator[Matrix]:
    """Yield the matrices that have rows for these plugins, each once."""
    seen: list[Matrix] = []
    for entry in entries:
        matrix = matrix_for(entry)
        if matrix and not any(matrix is other for other in seen):
            seen.append(matrix)
            yield matrix


def validate_compatibility(checked: ResolvedRecipe, family: str) -> None:
    """Raise RecipeError where the recipe's adapter was measured to fail on such a student.

    What the adapter refuses itself is not reported here, since its own error is more specific.

    family  the `model_type` of the student's configuration
    """
    for section, name in checked.plugins.named("add_adapter"):
        entry = checked.entries[section, name]
        matrix, loading = matrix_for(entry), _loading_of(checked)
        if matrix is None or _is_unmeasured(matrix, checked.plugins.section(section)[name]):
            continue
        finding = matrix.rows[entry.name].finding(loading, family)
        if finding and finding.at != REFUSED:
            raise RecipeError([_problem(matrix, finding, entry.name, loading, family, path_of(section, name))])


def _loading_of(checked: ResolvedRecipe) -> str:
    """Return the loading of the recipe's student: the names of its `load` plugins as registered, joined by `+`."""
    names = sorted(entry.name for (section, _), entry in checked.entries.items() if section == "student.load")
    return "+".join(names) or PLAIN


def _is_unmeasured(matrix: Matrix, plugin: Any) -> bool:
    """Whether the plugin has a value other than the default in an option of `matrix.unless`."""
    defaults = {option.name: option.default for option in fields(plugin)}
    return any(name in defaults and getattr(plugin, name) != defaults[name] for name in matrix.unless)


def _problem(
    matrix: Matrix, finding: Finding, adapter: str, loading: str, family: str, path: tuple[Any, ...]
) -> Problem:
    loaded = "" if loading == PLAIN else f" loaded by `{loading}`"
    return Problem(
        what=f"`{adapter}` {FAILS[finding.at]} models of the family `{family}`{loaded}",
        why=f"{finding.why} ({measured_with(matrix)})",
        fix=_fix(matrix, finding, adapter, loading, family),
        path=path,
    )


def summary(matrix: Matrix, adapter: str, loading: str) -> str:
    """Return text on which families an adapter works with a loading, as "all but gpt2"."""
    works = matrix.works(adapter, loading)
    others = [family for family in matrix.families if family not in works]
    if not works or not others:
        return "all" if works else "none"
    return f"all but {', '.join(others)}" if len(others) <= len(works) else f"only {', '.join(works)}"


def reasons(matrix: Matrix, adapter: str) -> Iterator[str]:
    """Yield a line for each finding on an adapter: stage, families with loadings, reason, options that help."""
    for finding in matrix.rows[adapter].findings:
        groups: dict[tuple[str, ...], list[str]] = {}
        for loading, families in finding.where.items():
            groups.setdefault(tuple(families), []).append(loading)
        places = "; ".join(f"{_families(matrix, families)} ({', '.join(ways)})" for families, ways in groups.items())
        works = f"; with `{_as_yaml(finding.options)}` it works" if finding.options else ""
        yield f"{FAILS[finding.at]} {places}: {finding.why}{works}"


def _families(matrix: Matrix, families: tuple[str, ...]) -> str:
    return "every family" if len(families) == len(matrix.families) else ", ".join(families)


def measured_on(matrix: Matrix) -> str:
    """Return the sentence that names the measurement's versions and device."""
    versions = ", ".join(f"{name} {version}" for name, version in matrix.versions.items())
    return f"Measured with {versions}, on {matrix.device}"


def measured_with(matrix: Matrix) -> str:
    """Return text with the versions of a measurement, and the installed ones where they differ."""
    versions = ", ".join(f"{name} {version}" for name, version in matrix.versions.items())
    others = [
        f"{name} {installed}" if installed else f"no {name}" for name, (_, installed) in matrix.differing().items()
    ]
    return f"measured with {versions}{'; installed: ' if others else ''}{', '.join(others)}"


def _fix(matrix: Matrix, finding: Finding, adapter: str, loading: str, family: str) -> str:
    """Return the ways out, best first: options that help, another loading, similar adapters, another family."""
    loadings, adapters = matrix.nearest(adapter, loading, family)
    ways = [f"write `{adapter}: {_as_yaml(finding.options)}`"] if finding.options else []
    if PLAIN in loadings:
        ways.append("load the student unquantised")
    elif loadings:
        ways.append(f"load the student by {' or '.join(f'`{other}`' for other in loadings)}")
    if adapters:
        ways.append(f"name {' or '.join(f'`{name}`' for name in adapters)}")
    return "; or ".join(ways) or "choose a model of another family"


def _as_yaml(options: dict[str, Any]) -> str:
    written = (f"{name}: [{', '.join(value)}]" if isinstance(value, list) else f"{name}: {value}"
               for name, value in options.items())  # fmt: skip
    return f"{{{', '.join(written)}}}"

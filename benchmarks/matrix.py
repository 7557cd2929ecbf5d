"""Compatibility of adapters, ways to load and model families, measured on tiny random models.

    python benchmarks/matrix.py                  measures all, writes matrix.json and docs/reference/matrix.md
    python benchmarks/matrix.py --only NAME ...  measures only these adapters and keeps the other rows
    python benchmarks/matrix.py --quick          prints two adapters on two families and stores nothing

matrix_cell.py tests one cell. `neoplug plugins --matrix` shows the data; `plan` and `run` refuse cells that failed.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from families import PACKAGES, loaders
from matrix_cell import Base, Failed, Text, attention_layers, check_same_trainable, text, try_cell
from matrix_page import PAGE, page

from neoplug import recipe
from neoplug.environment.info import version_of
from neoplug.errors import RecipeError
from neoplug.models.load import load_model, load_tokenizer
from neoplug.models.resolve import locate
from neoplug.registry import Plugins, answered, build, find, installed
from neoplug.registry.compatibility import FILE, PLAIN, REFUSED, Finding, Matrix, Row
from neoplug.testing.families import FAMILIES, make

DATA = Path(__file__).parents[1] / "plugins" / "neoplug_adapters" / FILE
QUICK = (("lora", "pissa"), ("llama", "mixtral"))
UNLESS = ["target_modules", "exclude_modules", "layers_to_transform"]  # options that select other layers: not measured
EXPERTS = 16  # more than usual ranks, so that no router is too small for them
SIZES = {"mixtral": {"num_local_experts": EXPERTS}, "qwen3_moe": {"num_experts": EXPERTS}}
EXACT = {"nf4": {"compute_dtype": "float32"}, "fp4": {"compute_dtype": "float32"}}  # without rounding in products
HERE = Path()


@dataclass(frozen=True)
class Cell:
    """The result of one cell.

    trained  trainable parameters with their sizes; empty if the cell failed
    failed   where and why it failed
    options  options with which it works instead
    """

    trained: dict[str, int]
    failed: Failed | None = None
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()


def adapters() -> list[str]:
    """Return the names of neoplug's own adapters."""
    own = [entry for entry in installed() if entry.package == "neoplug"]
    return sorted(entry.name for entry in own if "add_adapter" in answered(entry.load()))


def load(folder: Path, loading: str) -> Any:
    """Return a model loaded as a run loads it, in float32."""
    plugins = {} if loading == PLAIN else {loading: build(find(loading, HERE).load(), EXACT.get(loading, {}))}
    return load_model(
        locate(str(folder)), dtype=torch.float32, device="cpu", attn_implementation=None,
        plugins=Plugins({"student.load": plugins}), role="student", section="student.load",
    )  # fmt: skip


@cache
def refused(adapter: str, loading: str) -> Failed | None:
    """Return why a recipe with this adapter and loading is refused before a model is read; None if it is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text.txt").touch()
        values = {
            "student": {"model": folder, "load": {} if loading == PLAIN else {loading: {}}},
            "data": {"source": "text.txt", "packing": False},
            "adapter": {adapter: {}},
            "loss": {"cross_entropy": {"weight": 1.0}},
        }
        Path(folder, "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
        try:
            recipe.load(Path(folder, "recipe.yaml"))
        except RecipeError as error:
            return Failed(REFUSED, error.problems[0].why or error.problems[0].what)
    return None


def cell(adapter: str, base: Base, words: Text, plain: dict[str, int] | None) -> Cell:
    """Return the result of a cell; if it fails, try again on the layers of attention only.

    plain  the trainable parameters on an unquantised student; None if this student is unquantised
    """
    cls = find(adapter, HERE).load()
    try:
        trained = try_cell(build(cls, {}), base, words)
        if plain:
            check_same_trainable(trained, plain)
        return Cell(trained)
    except Failed as failed:
        names = attention_layers(base.model)
        if failed.at == REFUSED or not (names and hasattr(cls, "target_modules")):
            return Cell({}, failed)
        try:
            try_cell(build(cls, {"target_modules": names}), base, words)
        except Failed:
            return Cell({}, failed)
        return Cell({}, failed, (("target_modules", tuple(names)),))


def measure(names: Iterable[str], families: Iterable[str]) -> dict[str, Row]:
    """Return the rows of these adapters, measured on these families with all loadings."""
    cells: dict[tuple[str, str, str], Cell] = {}  # by adapter, loading, family
    names = list(names)
    with tempfile.TemporaryDirectory() as root:
        for family in families:
            folder = make(family, Path(root) / family, **SIZES.get(family, {}))
            words = text(len(load_tokenizer(locate(str(folder)))))
            for loading in (PLAIN, *loaders()):
                base = Base.of(load(folder, loading), words)
                for name in names:
                    plain = None if loading == PLAIN else cells[name, PLAIN, family].trained
                    refusal = refused(name, loading)
                    result = Cell({}, refusal) if refusal else cell(name, base, words, plain)
                    cells[name, loading, family] = result
            print(family, *(name for name in names if cells[name, PLAIN, family].failed), file=sys.stderr)
    return {name: row(name, {key[1:]: found for key, found in cells.items() if key[0] == name}) for name in names}


def kind(adapter: str) -> str:
    """Return the class of an adapter's configuration in peft, or its own name."""
    return getattr(find(adapter, HERE).load(), "config", adapter)


def row(adapter: str, cells: dict[tuple[str, str], Cell]) -> Row:
    """Return a row of the matrix: cells that fail in the same way and have the same fix are one finding."""
    first = next(found for found in cells.values() if found.trained)
    where: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for (loading, family), found in cells.items():
        if found.failed:
            why = found.failed.why.replace(f": '{family}'", "")  # so that messages do not differ by family only
            key = (found.failed.at, why, found.options)
            where.setdefault(key, {}).setdefault(loading, []).append(family)
    findings = [
        Finding(at, why, places, {name: list(value) for name, value in options})
        for (at, why, options), places in where.items()
    ]
    return Row(kind(adapter), sum(first.trained.values()), findings)


def versions() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := version_of(name))}


def store(matrix: Matrix) -> None:
    """Write the data, one finding per line, and the page."""
    found = asdict(matrix)
    rows = found.pop("rows")
    head = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in found.items())
    body = ",\n".join(f'"{name}": {_row(rows[name])}' for name in sorted(rows))
    DATA.write_text(f'{{\n{head},\n"rows": {{\n{body}\n}}\n}}\n', encoding="utf-8")
    PAGE.write_text(page(Matrix.read(DATA)), encoding="utf-8")


def _row(row: dict[str, Any]) -> str:
    findings = ",\n  ".join(json.dumps(finding) for finding in row["findings"])
    lines = f"\n  {findings}\n" if findings else ""
    return f'{{"kind": "{row["kind"]}", "parameters": {row["parameters"]}, "findings": [{lines}]}}'


def stored_rows() -> dict[str, Row]:
    """Return the stored rows. Exit if they were measured with other versions of the packages."""
    before = Matrix.read(DATA)
    if before.versions != versions():
        sys.exit(
            f"{DATA.name} was measured with {before.versions}, but installed are {versions()}: measure all adapters"
        )
    return before.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these adapters")
    parser.add_argument("--quick", action="store_true", help="two adapters, two families, printed, nothing stored")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    before = stored_rows() if arguments.only and not arguments.quick else {}
    names, families = QUICK if arguments.quick else (arguments.only or adapters(), list(FAMILIES))
    rows = before | measure(names, families)
    device = f"cpu, {platform.machine()}"
    matrix = Matrix(versions(), device, UNLESS, [PLAIN, *loaders()], list(families), rows)
    if arguments.quick:
        print(page(matrix))
    else:
        store(matrix)


if __name__ == "__main__":
    main()

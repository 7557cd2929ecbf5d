"""The shipped matrix: a row for each adapter, consistent with the traits of adapters, the page and `plan`."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from neoplug import AdapterTraits
from neoplug.registry import answered, installed
from neoplug.registry.compatibility import FAILS, PLAIN, Matrix, reasons, summary
from neoplug.testing.families import FAMILIES

ROOT = Path(__file__).parents[2]
FILE = ROOT / "plugins" / "neoplug_adapters" / "matrix.json"
SHIPPED = Matrix.read(FILE)
PAGE = (ROOT / "docs" / "reference" / "matrix.md").read_text(encoding="utf-8")


def built_in():
    own = {point.name for point in entry_points(group="neoplug") if point.dist.name == "neoplug"}
    classes = {entry.name: entry.load() for entry in installed() if entry.name in own}
    return {name: cls for name, cls in classes.items() if "add_adapter" in answered(cls)}


def test_every_built_in_adapter_was_measured():
    missing = sorted(set(built_in()) - set(SHIPPED.rows))
    assert not missing, f"run: python benchmarks/matrix.py --only {' '.join(missing)}"
    assert not set(SHIPPED.rows) - set(built_in()), "run: python benchmarks/matrix.py"


def test_every_family_and_loading_was_measured():
    assert SHIPPED.families == list(FAMILIES)
    loaders = {entry.name for entry in installed() if "load_kwargs" in answered(entry.load())}
    assert set(SHIPPED.loadings) - {PLAIN} == loaders & set(SHIPPED.loadings)
    assert {"nf4", "fp4", "int8"} <= set(SHIPPED.loadings)


def test_findings_refer_to_existing_cells():
    for name, row in SHIPPED.rows.items():
        cells = [
            (loading, family)
            for found in row.findings
            for loading, families in found.where.items()
            for family in families
        ]
        assert len(cells) == len(set(cells)), name
        assert {found.at for found in row.findings} <= set(FAILS)
        assert {loading for loading, _ in cells} <= set(SHIPPED.loadings)
        assert {family for _, family in cells} <= set(SHIPPED.families)
        assert row.parameters > 0


def test_traits_for_quantised_students_are_those_that_were_measured():
    for name, cls in ((name, cls) for name, cls in built_in().items() if name in SHIPPED.rows):
        refuses = bool(AdapterTraits.of(cls).not_on_quantised)
        quantised = [way for way in SHIPPED.loadings if way != PLAIN]
        assert all((SHIPPED.works(name, way) == []) == refuses for way in quantised), name


def test_every_adapter_works_on_the_family_of_its_tests_and_lora_everywhere():
    assert all("llama" in SHIPPED.works(name, PLAIN) for name in SHIPPED.rows)
    assert all(summary(SHIPPED, "lora", way) == "all" for way in SHIPPED.loadings)


def test_the_page_shows_the_data():
    for name in SHIPPED.rows:
        cells = " | ".join(summary(SHIPPED, name, loading) for loading in SHIPPED.loadings)
        assert f"| `{name}` | {cells} |" in PAGE
        assert all(f"- `{name}` {line}" in PAGE for line in reasons(SHIPPED, name))
    assert all(f"{package} {version}" in PAGE for package, version in SHIPPED.versions.items())


def test_the_matrix_is_part_of_the_package():
    import tomllib

    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert FILE.name in tools["package-data"]["neoplug_adapters"]
    assert json.loads(FILE.read_text())["rows"]


@pytest.mark.slow
def test_the_command_still_works():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "matrix.py", "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"| `lora` | {' | '.join(['all'] * len(SHIPPED.loadings))} |" in done.stdout

"""The version is defined only in `neoplug/__init__.py`; other files that state it agree."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml

from neoplug import __version__

ROOT = Path(__file__).parents[2]


def test_the_installed_metadata_has_the_version_of_the_package():
    assert version("neoplug") == __version__


def test_pyproject_reads_the_version_from_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "neoplug.__version__"}


def test_the_changelog_has_a_section_for_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)}\b", text, re.MULTILINE)


def test_the_citation_names_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__

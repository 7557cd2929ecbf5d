"""Fixtures for tests of the project itself: its files, and its parsed sources."""

import ast
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Source:
    """A Python file of the project; `name` is its path from the project's root."""

    name: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def project_files():
    """Return the paths, from the root, of all tracked and untracked files, without those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def sources(project_files):
    """Return all Python files of the project, parsed."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in project_files if name.endswith(".py")}
    return [Source(name, text, ast.parse(text)) for name, text in texts.items()]


@pytest.fixture(scope="session")
def core(sources):
    """Return the files of the core."""
    return [source for source in sources if source.name.startswith("neoplug/")]

"""Every command, every Python block and every recipe in the documentation works."""

import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError
from tests.commands import Command, Script

from . import documents as docs

IDS = [str(document.relative_to(docs.ROOT)) for document in docs.DOCUMENTS]
FILES = {("data", "source"), ("student", "model"), ("teacher", "model")}  # files that a page names and does not contain
documented = pytest.mark.parametrize("document", docs.DOCUMENTS, ids=IDS)


@pytest.fixture
def checkout(tmp_path, project_files):
    """Return a copy of the project with this environment as its .venv, as the docs assume."""
    for name in project_files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(docs.ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@documented
def test_every_command_has_a_known_program(document):
    list(docs.commands(document))


@pytest.mark.parametrize(
    ("written", "run"),
    [
        (".venv/bin/neoplug run mine.yaml", f".venv/bin/neoplug run mine.yaml {docs.QUICK}"),
        ("neoplug plan mine.yaml", "neoplug plan mine.yaml"),
        ("neoplug cache mine.yaml", f"neoplug cache mine.yaml {docs.QUICK}"),
        ("neoplug cache --list", "neoplug cache --list"),
        ("neoplug schema > s.json", "neoplug schema > s.json"),
        ("OMP_NUM_THREADS=2 neoplug doctor", "OMP_NUM_THREADS=2 neoplug doctor"),
        ("torchrun -m neoplug run mine.yaml", f"torchrun -m neoplug run mine.yaml {docs.QUICK}"),
        ("python benchmarks/step.py", "python benchmarks/step.py --quick"),
        ("python3 -m venv .venv", None),
        (".venv/bin/pip install -e '.[test]'", None),
        (".venv/bin/pytest -m 'not slow'", None),
    ],
)
def test_a_command_is_run_by_the_rules(written, run):
    assert docs.as_run(written) == run


def test_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match="not a known program"):
        docs.as_run("curl somewhere")


@pytest.mark.slow
@documented
def test_every_command_works(document, checkout):
    """The commands of a document run one after the other in one folder, as a reader types them."""
    for line, command in docs.commands(document):
        code, printed = completed(command, checkout)
        assert code == 0, f"{document.name}:{line}: {command}\n{printed}"


def completed(command, folder):
    """Run a command line in a folder; return its exit code and what it printed."""
    program, *words = shlex.split(command)
    forked = {"neoplug": Command, "python": Script}.get(Path(program).name)
    if forked and ">" not in words:
        process = forked(*words, cwd=folder).start().end(900)
        return process.exitcode, process.out + process.err
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@documented
def test_every_python_block_works(document, monkeypatch):
    """The Python blocks of a document are one program; its tests are called, its losses pass the conformance kit."""
    from neoplug.testing import check_loss

    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    for block in docs.blocks(document, "python"):
        before = set(vars(module))
        code = compile(textwrap.dedent(block.text), f"{document.name}:{block.line}", "exec")
        exec(code, vars(module))
        for name in set(vars(module)) - before:
            found = getattr(module, name)
            if isinstance(found, type) and found.__module__ == "documented" and hasattr(found, "token_loss"):
                check_loss(found(), max_examples=10)
            elif name.startswith("test_"):
                found()


@documented
def test_every_recipe_is_valid(document, tmp_path):
    """A block that names a student is a whole recipe: its only mistakes are files that do not exist here."""
    for block in docs.blocks(document, "yaml"):
        if "student:" not in block.text:
            continue
        file = tmp_path / f"line_{block.line}.yaml"
        file.write_text(block.text, encoding="utf-8")
        assert not [problem for problem in mistakes(file) if problem.path not in FILES]


def mistakes(file):
    """Return the mistakes of a recipe."""
    try:
        recipe.load(file)
    except RecipeError as error:
        return error.problems
    return []


def test_the_readme_commands_that_install_are_run_by_ci():
    written = [
        line for block in docs.blocks(docs.ROOT / "README.md", "bash") for _, line in docs.logical_lines(block.text)
    ]
    script = (docs.ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in written if "pip install" in line and line not in script] == []
    assert sum("pip install" in line for line in written) >= 2


def test_the_changelog_names_every_built_in_and_recipe():
    text = (docs.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    recipes = {file.stem for file in (docs.ROOT / "recipes").glob("*.yaml")}
    built_ins = {point.name for point in entry_points(group="neoplug") if point.dist.name == "neoplug"}
    assert [name for name in sorted(recipes | built_ins) if f"`{name}`" not in text] == []

"""`neoplug new` writes packages whose tests pass as written, and whose names work in recipes."""

import subprocess
import sys

import pytest

from neoplug import recipe
from neoplug.cli.new import PLACES, new
from neoplug.recipe.source import shipped
from tests.commands import Script
from tests.packages import install

RUN_TESTS = "import pytest, sys; sys.path.insert(0, 'src'); sys.exit(pytest.main(['-q', '-W', 'error']))\n"
RUFF = ("--isolated", "--line-length", "120")


@pytest.fixture(scope="module", params=PLACES)
def package(request, tmp_path_factory):
    """Return the kind and the folder of a new package."""
    folder = tmp_path_factory.mktemp("new") / "package"
    new(request.param, f"my_{request.param}", folder)
    return request.param, folder


@pytest.fixture
def on_the_path(package, monkeypatch):
    """Make the package importable with its entry points, as pip does; return the kind and its metadata."""
    kind, folder = package
    return kind, install(folder, monkeypatch)


def test_its_tests_pass(package, tmp_path):
    (script := tmp_path / "run_tests.py").write_text(RUN_TESTS)
    process = Script(script, cwd=package[1], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1").start().end()
    assert process.exitcode == 0, process.out + process.err


def test_it_is_formatted_and_has_no_lint(package):
    for check in (("format", "--check"), ("check", "--select", "A,B,D1,E,F,I,N,UP")):
        ignored = ("--ignore", "D100,D101,D102,D103,D104,D105,D107") if check[0] == "check" else ()
        command = [sys.executable, "-m", "ruff", *check, *ignored, *RUFF, "src", "tests"]
        done = subprocess.run(command, cwd=package[1], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_recipe_names_it(on_the_path):
    kind, metadata = on_the_path
    name = f"{metadata['name']}/try"
    assert name in shipped()
    checked = recipe.load(name)
    *outer, section = PLACES[kind]
    found = checked.resolved()
    for key in (*outer, section):
        found = found[key]
    assert list(found) == [f"my_{kind}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["losses", "mine"], "did you mean `loss`?"),
        (["token_weights", "mine"], "did you mean `token_weight`?"),
        (["loss", "jsd"], "neoplug has a plugin `jsd`"),
        (["loss", "Mine"], "cannot be the name of a plugin"),
        (["loss", "class"], "cannot be the name of a plugin"),
        (["loss", "losses"], "a package neoplug_losses"),
    ],
)
def test_what_cannot_be_written_is_refused(neoplug, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    answer = neoplug("new", *arguments)
    assert answer.code == 2
    assert words in answer.err
    assert "\nfix: " in answer.err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_as_it_is(neoplug, tmp_path):
    (tmp_path / "mine").mkdir()
    answer = neoplug("new", "loss", "mine", "--output", tmp_path / "mine")
    assert answer.code == 2
    assert "nothing is overwritten" in answer.err
    assert not list((tmp_path / "mine").iterdir())

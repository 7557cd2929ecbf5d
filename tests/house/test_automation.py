"""Workflows, pre-commit hooks, issue forms and requirements: files for GitHub and pip that other tests do not read."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def parsed(name):
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), yaml.BaseLoader)  # BaseLoader keeps `on` and 3.10


def steps(workflow):
    """Yield each step of each job."""
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        yield from job["steps"]


@pytest.fixture(scope="module")
def ci():
    return parsed(".github/workflows/ci.yml")


@pytest.fixture(scope="module")
def nightly():
    return parsed(".github/workflows/nightly.yml")


def test_ci_runs_the_script_on_the_lowest_python_and_the_whole_history(ci):
    assert [step["run"] for step in steps(ci) if "run" in step] == [".ci/run"]
    settings = {step["uses"].partition("@")[0]: step["with"] for step in steps(ci) if "uses" in step}
    assert settings["actions/checkout"]["fetch-depth"] == "0"
    assert PROJECT["requires-python"] == f">={settings['actions/setup-python']['python-version']}"


def test_ci_runs_for_each_pull_request_and_push_to_main(ci):
    assert ci["on"] == {"push": {"branches": ["main"]}, "pull_request": ""}


def test_nightly_tests_each_python_of_the_classifiers(nightly):
    assert nightly["jobs"]["newest"]["strategy"]["matrix"]["python-version"] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_nightly_measures_coverage_and_tests_the_lowest_versions(nightly):
    commands = [step.get("run", "") for step in steps(nightly)]
    assert ".venv/bin/coverage run -m pytest" in commands
    assert ".ci/lowest" in commands


@pytest.mark.parametrize("name", [".ci/run", ".ci/lowest"])
def test_scripts_are_executable(name):
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_each_requirement_has_a_lowest_version(extra):
    """Without one, `--resolution lowest-direct` installs the first release of the package."""
    written = EXTRAS[extra] if extra else PROJECT["dependencies"]
    bounds = {name.name: {one.operator for one in name.specifier} for name in map(Requirement, written)}
    assert [name for name, operators in bounds.items() if not operators & {">=", "=="}] == []


def test_pre_commit_runs_tools_of_the_extra_test_without_network():
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    tools = {Requirement(name).name for name in EXTRAS["test"]}
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        folder, _, program = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin"
        assert program in tools


def test_ci_runs_the_hooks_of_pre_commit():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "pre-commit run --all-files" in script


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_the_keys_that_github_requires(form):
    content = parsed(form)
    assert content["name"]
    assert content["description"]
    identifiers = [element["id"] for element in content["body"]]
    assert len(identifiers) == len(set(identifiers))
    for element in content["body"]:
        assert element["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert element["attributes"]["label"]
        assert element["type"] != "dropdown" or len(set(element["attributes"]["options"])) > 1

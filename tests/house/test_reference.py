"""The generated reference pages list the keys of the recipe's types and the installed plugins."""

import json
import re
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType

import pytest
import yaml

import neoplug.testing
from neoplug.recipe import Data, Evaluate, Recipe, Student, Train
from neoplug.recipe.reference import Reference, Target
from neoplug.recipe.source import shipped
from neoplug.registry import installed
from neoplug.runs.result import RunResult
from neoplug.studies.schema import Contrast, Metric, Searched, StudyFile
from neoplug.studies.summary_schema import Summary

DOCS = Path(__file__).parents[2] / "docs"
DEFAULT = re.compile(r"^\| `(\w+)` \| .* \| (.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def maker():
    """Return the module of the site's build hook."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import generate
    return generate


def page(maker, name):
    return maker.on_page_markdown((DOCS / "reference" / name).read_text(encoding="utf-8"))


def section(text, title):
    return text.partition(f"\n{title}\n")[2].partition("\n#")[0]


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("`data`", Data),
        ("`train`", Train),
        ("`evaluate`", Evaluate),
        ("`reference`", Reference),
        ("`reference.targets.METRIC`", Target),
    ],
)
def test_a_section_lists_each_key_with_its_default(maker, title, model):
    listed = dict(DEFAULT.findall(section(page(maker, "recipe.md"), f"## {title}")))
    expected = {
        name: f"`{json.dumps(field.default)}`" for name, field in model.model_fields.items() if not field.is_required()
    }
    assert {name: listed[name] for name in expected} == expected
    assert set(listed) == set(model.model_fields)


def test_required_keys_are_marked(maker):
    text = page(maker, "recipe.md")
    listed = dict(DEFAULT.findall(section(text, "## Top level")))
    assert set(listed) == {*Recipe.model_fields, "extends"}
    assert {name for name, default in listed.items() if default == "required"} == {"student", "data"}
    assert dict(DEFAULT.findall(section(text, "## `student`")))["model"] == "required"
    assert set(dict(DEFAULT.findall(section(text, "## `student`")))) == set(Student.model_fields)
    claimed = dict(DEFAULT.findall(section(text, "## `reference`")))
    assert {name for name, default in claimed.items() if default == "required"} == {"claim", "source"}


@pytest.mark.parametrize(
    ("title", "model"),
    [("Top level", StudyFile), ("`search.KEY`", Searched), ("`metrics.NAME`", Metric), ("`contrasts`", Contrast)],
)
def test_a_section_of_a_study_lists_each_key_and_marks_the_required(maker, title, model):
    listed = dict(DEFAULT.findall(section(page(maker, "study.md"), f"## {title}")))
    assert [*listed] == [*model.model_fields]
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert {name for name, default in listed.items() if default == "required"} == required


def test_every_key_of_a_result_is_listed_with_its_meaning(maker):
    listed = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \|$", section(page(maker, "run-directory.md"), "## result.json"), re.M
    )
    assert [name for name, *_ in listed[:3]] == ["format", "status", "reason"]
    assert {name for name, *_ in listed} == set(RunResult.model_fields)


def test_every_key_of_a_summary_is_listed_with_its_meaning(maker):
    text = page(maker, "study-summary.md").partition("<details")[0]
    schema = Summary.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        table = [name for name in part["properties"] if f"| `{name}` |" in text]
        assert table == list(part["properties"])
    assert set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE)) <= set(Summary.model_fields)


def test_every_built_in_plugin_has_a_section_with_its_options(maker):
    text = page(maker, "plugin-options.md")
    names = {point.name for point in entry_points(group="neoplug") if point.dist.name == "neoplug"}
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(names)
    for entry in installed():
        if entry.package == "neoplug":
            options = {field.name for field in fields(entry.load()) if field.init}
            assert options <= set(re.findall(r"^\| `(\w+)` \|", section(text, f"### {entry.name}"), re.MULTILINE))


@pytest.mark.parametrize("module", [neoplug, neoplug.testing], ids=lambda module: module.__name__)
def test_public_names_without_a_docstring_are_described(module):
    """The site takes classes and plain functions from their docstrings; everything else is described by hand."""
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    others = [name for name in module.__all__ if not documented(getattr(module, name))]
    assert [name for name in others if f"`{name}`" not in text] == []


def documented(value):
    return isinstance(value, type | FunctionType) and bool(value.__doc__) and value.__module__.startswith("neoplug")


def test_every_published_recipe_is_listed_with_what_its_source_leaves_open(maker):
    text = maker.on_page_markdown((DOCS / "published.md").read_text(encoding="utf-8"))
    for name, file in shipped().items():
        if name.startswith("published/"):
            listed = section(text, f"### {name}")
            stated = yaml.safe_load(file.read_text(encoding="utf-8"))["reference"]
            assert stated["source"] in listed
            assert all(f"- Left open: {left}" in listed for left in stated["left_open"])

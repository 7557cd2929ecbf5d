"""`recipes` and `schema`."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tests.packages import install


@pytest.fixture(scope="module")
def shipped():
    """Return the shipped recipes' files by name."""
    folder = Path(str(files("neoplug_recipes")))
    found = {file.stem: file for file in folder.glob("*.yaml")}
    for file in folder.glob("published/*/*.yaml"):
        found[f"published/{file.parent.name}/{file.stem}"] = file
    return dict(sorted(found.items()))


def test_the_list_describes_each_recipe_by_its_first_comment(neoplug, shipped):
    answer = neoplug("recipes")
    assert answer.code == 0
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert list(lines) == list(shipped)
    for name, description in lines.items():
        assert shipped[name].read_text().startswith(f"# {description}\n")


def test_a_recipe_is_printed_unmodified(neoplug, shipped):
    for name, file in shipped.items():
        assert neoplug("recipes", name).out == file.read_text()


def test_a_recipe_is_copied_but_does_not_overwrite_a_file(neoplug, shipped, tmp_path):
    name, file = next(iter(shipped.items()))
    target = tmp_path / "mine.yaml"
    answer = neoplug("recipes", name, "--copy", target)
    assert answer.code == 0
    assert target.read_text() == file.read_text()
    assert str(target) in answer.out
    target.write_text("mine\n")
    refused = neoplug("recipes", name, "--copy", target)
    assert refused.code == 2
    assert "exists" in refused.err
    assert target.read_text() == "mine\n"


def test_a_recipe_that_cannot_be_copied_exits_2(neoplug, shipped, tmp_path):
    name = next(iter(shipped))
    assert neoplug("recipes", name, "--copy", tmp_path / "no" / "folder.yaml").code == 2
    assert neoplug("recipes", "--copy", tmp_path / "x.yaml").code == 2
    unknown = neoplug("recipes", f"{name}x")
    assert unknown.code == 2
    assert f"did you mean `{name}`?" in unknown.err


def test_the_schema_has_the_plugins_options(neoplug):
    answer = neoplug("schema")
    assert answer.code == 0
    schema = json.loads(answer.out)
    assert "$schema" in schema or "properties" in schema
    for word in ("lora_alpha", "temperature", "num_train_epochs"):
        assert f'"{word}"' in answer.out


def test_a_scale_needs_a_published_recipe_and_a_known_name(neoplug):
    other = neoplug("plan", "llm_neo_tiny", "--scale", "tiny")
    assert other.code == 2
    assert "--scale does not support llm_neo_tiny" in other.err
    misspelt = neoplug("plan", "published/llm_neo/neo", "--scale", "tinny")
    assert misspelt.code == 2
    assert "did you mean `tiny`?" in misspelt.err


def test_a_file_of_a_package_that_is_no_text_hides_no_recipe(neoplug, shipped, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "vendor"\nversion = "1"\n[project.entry-points."neoplug.recipes"]\nvendor = "vendor"\n'
    )
    (folder := tmp_path / "src" / "vendor").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "broken.yaml").write_bytes(b"\xff\xfe")
    install(tmp_path, monkeypatch)
    answer = neoplug("recipes")
    assert answer.code == 0, answer.err
    assert {"vendor/broken", *shipped} == {line.split()[0] for line in answer.out.splitlines()}

"""Sources of rows that are plugins, in recipes: names, places, options, consent, and what is made of them."""

import json
from pathlib import Path

import pytest

from neoplug import recipe as recipes
from neoplug.data.ingest.recipe_sources import eval_source_of, training_sources
from neoplug.errors import RecipeError
from neoplug.reproduction.packing import _Packer

PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from neoplug import Source, hookimpl

@dataclass(eq=False)
class Lines:
    path: Path
    upper: bool = False

    @hookimpl
    def open_source(self):
        return Source(self.rows, lambda: [self.path.read_text(), self.upper])

    def rows(self):
        for line in self.path.read_text().splitlines():
            yield {"text": line.upper() if self.upper else line}
"""
RECIPE = """student: {model: some/model}
adapter: {lora: {}}
loss: {cross_entropy: {}}
data:
"""
MIXED = """  sources:
    v1.0: {source: {./lines.py:Lines: {path: a.txt}}}
    loud: {source: {./lines.py:Lines@loud: {path: a.txt, upper: true}}, max_rows: 1}
    file: {source: rows.jsonl}
  eval_source: {./lines.py:Lines: {path: b.txt}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a recipe with this section `data` next to a plugin and its files."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (folder / "lines.py").write_text(PLUGIN)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.txt").write_text("three\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "four"}) + "\n")

    def write(data, name="recipe.yaml"):
        (folder / name).write_text(RECIPE + data)
        return folder / name

    return write


def texts(source):
    return [row["text"] for row in source.reader.rows()]


def test_several_sources_and_the_evaluation_source_are_plugins(write):
    checked = recipes.load(write(MIXED))
    sources = training_sources(checked.recipe.data, checked.plugins)
    assert {name: texts(source) for name, source in sources.items()} == {
        "v1.0": ["one", "two"], "loud": ["ONE"], "file": ["four"],
    }  # fmt: skip
    evaluation = eval_source_of(checked.recipe.data, checked.plugins)
    assert texts(evaluation) == ["three"]
    assert evaluation.name == "./lines.py:Lines"
    assert sources["v1.0"].reader.identity() != sources["loud"].reader.identity()


def test_the_resolved_recipe_loads_from_any_folder(write, tmp_path):
    file = write(MIXED)
    resolved = recipes.load(file).resolved()
    named = resolved["data"]["sources"]["v1.0"]["source"]
    assert named == {f"{file.parent}/lines.py:Lines": {"path": str(file.parent / "a.txt"), "upper": False}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(resolved))
    trusted = recipes.load(tmp_path / "run" / "recipe.yaml", trust=[file.parent / "lines.py"])
    assert trusted.resolved() == resolved


def test_the_identity_changes_with_the_code_of_the_file(write):
    file = write("  source: {./lines.py:Lines: {path: a.txt}}\n")

    def identity():
        checked = recipes.load(file)
        return training_sources(checked.recipe.data, checked.plugins)[""].reader.identity()

    before = identity()
    assert identity() == before
    code = file.parent / "lines.py"
    code.write_text(code.read_text().replace("else line", "else line + '!'"))
    assert identity() != before


def test_code_outside_of_the_folder_of_the_recipe_needs_consent(write, tmp_path):
    (tmp_path / "lines.py").write_text(PLUGIN + "raise SystemExit('it runs')\n")
    for place in ("source", "eval_source"):
        data = {"source": "  source: ", "eval_source": "  source: rows.jsonl\n  eval_source: "}[place]
        with pytest.raises(RecipeError, match="code that you have not trusted") as found:
            recipes.load(write(data + "{../lines.py:Lines: {path: a.txt}}\n"))
        assert "recipe.yaml:" in str(found.value)


def test_a_child_replaces_the_source_of_its_parent(write):
    parent = write("  source: {./lines.py:Lines: {path: a.txt, upper: true}}\n", "parent.yaml")
    child = parent.with_name("child.yaml")
    child.write_text("extends: parent.yaml\ndata: {source: {./lines.py:Lines: {path: b.txt}}}\n")
    checked = recipes.load(child)
    assert texts(training_sources(checked.recipe.data, checked.plugins)[""]) == ["three"]
    assert recipes.load(child, ["data.source=mine/rows.jsonl"]).recipe.data.source == str(parent.parent / "rows.jsonl")
    (changed,) = (
        recipes.load(parent, ['data.source."./lines.py:Lines".upper=false']).plugins.section("data.source").values()
    )
    assert changed.upper is False


@pytest.mark.parametrize(
    ("data", "marked", "words"),
    [
        ("  source: {./lines.py:Lines: {path: c.txt}}", "c.txt", ["no file or folder c.txt", "did you mean"]),
        ("  source: {./lines.py:Lines: {pth: a.txt}}", "pth", ["unknown key `pth`", "did you mean `path`?"]),
        ("  source: {./lines.py:Line: {}}", "./lines.py:Line", ["did you mean `Lines`?"]),
        ("  source: {}", "source", ["`source` names no source of rows", "fix: name a file"]),
        ("  source: {lora: {}}", "lora", ["LoRA cannot be used under `source`", "fits under adapter"]),
        ("  source: 5", "5", ["must be text or a map"]),
        (
            "  source: {./lines.py:Lines: {path: a.txt}, ./lines.py:Lines@b: {path: b.txt}}",
            "./lines.py:Lines@b",
            ["`source` names ./lines.py:Lines@b and ./lines.py:Lines", "name each under `data.sources`"],
        ),
        ("  sources: {a.b: {source: {./lines.py:Lines: {path: c.txt}}}}", "c.txt", ["no file or folder c.txt"]),
        ("  sources: {a: {source: {./lines.py:Line: {}}}}", "./lines.py:Line", ["did you mean `Lines`?"]),
        ("  source: rows.jsonl\n  eval_source: {sqlit: {}}", "sqlit", ["did you mean `sqlite`?"]),
    ],
)
def test_a_mistake_is_reported_at_its_place(write, data, marked, words):
    with pytest.raises(RecipeError) as found:
        recipes.load(write(data + "\n"))
    message = str(found.value)
    *before, last = (RECIPE + data).splitlines()
    assert f"recipe.yaml:{len(before) + 1}:{last.rindex(marked) + 1}: " in message
    assert not [word for word in words if word not in message]


@pytest.mark.parametrize("key", ["split", "name", "revision"])
def test_keys_of_other_sources_are_refused(write, key):
    checked = recipes.load(write(f"  source: {{./lines.py:Lines: {{path: a.txt}}}}\n  {key}: main\n"))
    with pytest.raises(RecipeError, match=f"fix: remove `{key}`"), checked.marking():
        training_sources(checked.recipe.data, checked.plugins)[""].reader  # noqa: B018


@pytest.mark.parametrize("with_data", [False, True])
def test_an_archive_has_the_code_and_with_data_the_files_of_options(write, tmp_path, with_data):
    resolved = recipes.load(write(MIXED)).resolved()
    packer = _Packer(tmp_path / "archive", with_data=with_data, with_models=False)
    data = packer.relocated(resolved)["data"]
    ((name, options),) = data["sources"]["v1.0"]["source"].items()
    assert name.startswith("./files/")
    assert name.endswith("/lines.py:Lines")
    assert options["path"].startswith("./files/") is with_data
    packed = {Path(path).name for path in packer.names}
    assert packed == {"lines.py"} | ({"a.txt", "b.txt", "rows.jsonl"} if with_data else set())


def test_the_schema_of_editors_has_a_text_or_a_map_of_one_plugin():
    from neoplug.recipe.editor_schema import json_schema

    definitions = json_schema()["$defs"]
    for section, key in (("Data", "source"), ("Data", "eval_source"), ("Source", "source")):
        kinds = {kind["type"]: kind for kind in definitions[section]["properties"][key]["anyOf"]}
        assert set(kinds) - {"null"} == {"string", "object"}
        assert kinds["object"]["minProperties"] == kinds["object"]["maxProperties"] == 1
        options = definitions[kinds["object"]["properties"]["sqlite"]["$ref"].rpartition("/")[2]]
        assert options["required"] == ["path", "query"]

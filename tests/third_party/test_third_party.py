"""A third-party distribution next to neoplug's wheel: its plugins run, and its broken plugin breaks no other."""

import json
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGE = "neoplug-example-plugins"
PLUGINS = {"broken_plugin", "entropy", "squared_hellinger", "output_bottleneck"}
RESULTS = {  # of `neoplug check --package`
    "broken_plugin": "fails",
    "entropy": "passes",
    "squared_hellinger": "passes",
    "output_bottleneck": "needs options",
}
RECIPE = """
teacher: {{model: {teacher}}}
student: {{model: {student}}}
data: {{source: {chat}, max_length: 64, held_out: 4}}
adapter:
  output_bottleneck: {{target_modules: [v_proj, down_proj], width: 3}}
loss:
  squared_hellinger: {{}}
train: {{max_steps: 6, learning_rate: 3.0e-2, per_device_train_batch_size: 4, logging_steps: 3}}
probes:
  entropy: {{}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    file = tmp_path_factory.mktemp("recipe") / "third_party.yaml"
    file.write_text(RECIPE.format(teacher=tiny_teacher, student=tiny_student, chat=tiny_chat), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(installation, recipe):
    """Return the directory of a run with the distribution's loss, adapter and probe."""
    output = recipe.parent / "run"
    answer = installation.neoplug("run", recipe, "--output", output)
    assert answer.code == 0, answer.out + answer.err
    return output


def test_neoplug_and_the_example_plugins_are_imported_from_the_fresh_venv(installation):
    code = "import neoplug, neoplug_losses, neoplug_recipes, neoplug_example_plugins as e; " + (
        "print(*(m.__file__ for m in (neoplug, neoplug_losses, neoplug_recipes, e)), sep='\\n')"
    )
    answer = installation("python", "-c", code)
    assert answer.code == 0, answer.err
    files = answer.out.split()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(installation.folder) for file in files), files


def test_every_plugin_is_listed_including_the_broken_one(installation):
    listed = {(row["name"], row["package"]) for row in json.loads(installation.neoplug("plugins", "--json").out)}
    built_in = {(point.name, "neoplug") for point in entry_points(group="neoplug") if point.dist.name == "neoplug"}
    assert listed == built_in | {(name, "neoplug-example-plugins") for name in PLUGINS}


def test_every_plugin_is_listed_with_kind_and_description(installation):
    rows = {row["name"]: row for row in json.loads(installation.neoplug("plugins", "--json").out)}
    found = {name: (rows[name]["kind"], rows[name]["description"]) for name in PLUGINS}
    assert found == {
        "broken_plugin": (None, None),
        "entropy": ("probes", "Mean entropy over held-out answer tokens."),
        "squared_hellinger": ("loss", "One minus the Bhattacharyya coefficient of each token."),
        "output_bottleneck": ("adapter", "Puts a bottleneck after every linear layer with one of the names."),
    }


def test_a_section_leaves_out_the_broken_plugin_with_a_warning(installation):
    answer = installation.neoplug("plugins", "--section", "loss")
    names = {line.split()[0] for line in answer.out.splitlines()[1:]}
    assert answer.code == 0
    assert {"squared_hellinger", "forward_kl"} <= names
    assert not (PLUGINS - {"squared_hellinger"}) & names
    for part in ("broken_plugin", "neoplug-example-plugins", "0.3.0", "libexample.so.3"):
        assert part in answer.err


def test_the_run_completes_and_its_lock_names_the_distribution(finished):
    result = json.loads((finished / "result.json").read_text())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    lock = json.loads((finished / "lock.json").read_text())
    assert result["status"] == "completed"
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(set(line["losses"]) == {"squared_hellinger"} and 0 < line["loss"] <= 1 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert result["after"]["probes"]["entropy"]["nats"] != result["before"]["probes"]["entropy"]["nats"]
    locked = {key: (plugin["package"], plugin["version"]) for key, plugin in lock["plugins"].items()}
    for key in ("adapter.output_bottleneck", "loss.squared_hellinger", "probes.entropy"):
        assert locked[key] == ("neoplug-example-plugins", "0.3.0")


def test_only_the_bottlenecks_are_trainable(finished, tiny_student):
    config = json.loads((tiny_student / "config.json").read_text())
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    outputs = hidden + hidden // heads * config["num_key_value_heads"]  # of down_proj and of v_proj
    result = json.loads((finished / "result.json").read_text())
    assert result["trainable_parameters"] == config["num_hidden_layers"] * 2 * 3 * outputs


def test_the_export_is_the_base_with_the_saved_bottlenecks_merged(installation, finished, tiny_student, tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    answer = installation.neoplug("export", finished, tmp_path / "out")
    assert answer.code == 0, answer.err
    expected = AutoModelForCausalLM.from_pretrained(tiny_student)
    saved = load_file(finished / "adapter" / "bottlenecks.safetensors")
    layers = {name.rpartition(".")[0] for name in saved}
    assert {name.rpartition(".")[2] for name in layers} == {"v_proj", "down_proj"}
    for name in layers:
        layer = expected.get_submodule(name)
        assert saved[f"{name}.up"].any()
        merged = torch.eye(layer.out_features).double() + saved[f"{name}.up"].double() @ saved[f"{name}.down"].double()
        layer.weight.data = (merged @ layer.weight.double()).float()
    tokens = torch.arange(40)[None] + 50
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
        assert_allclose(found, expected(tokens).logits, atol=1e-4)


def test_the_saved_adapter_is_evaluated_as_the_run_measured_it(installation, finished, recipe):
    answer = installation.neoplug("eval", finished, recipe, "--json")
    assert answer.code == 0, answer.err
    measured = json.loads((finished / "result.json").read_text())["after"]
    assert json.loads(answer.out)["student"]["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-5)


def test_a_recipe_with_the_broken_plugin_is_refused_with_error_and_distribution(installation, recipe, tmp_path):
    answer = installation.neoplug(
        "run", recipe, "probes={entropy: {}, broken_plugin: {}}", "--output", tmp_path / "run"
    )
    assert answer.code == 2
    for part in ("broken_plugin", "ImportError", "libexample.so.3", "neoplug-example-plugins", "0.3.0"):
        assert part in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def test_the_third_party_loss_passes_the_conformance_kit(installation):
    code = (
        "from neoplug.testing import check_loss; from neoplug_example_plugins.hellinger import Hellinger; "
        "check_loss(Hellinger(), max_examples=5)"
    )
    answer = installation("python", "-c", code)
    assert answer.code == 0, answer.err


def test_the_whole_distribution_is_checked(installation):
    answer = installation.neoplug("check", "--package", PACKAGE, "--json")
    assert answer.code == 1, answer.err  # one of its plugins cannot be imported, on purpose
    assert results(answer) == RESULTS
    assert "libexample.so.3" in answer.out


def results(answer):
    """Return {plugin: result} of `neoplug check --package`."""
    return {one["plugin"]: one["result"] for one in json.loads(answer.out)["plugins"]}


def test_the_wheel_has_the_shipped_recipes(installation, tmp_path):
    shipped = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    listed = installation.neoplug("recipes", cwd=tmp_path).out
    for name in shipped:
        assert name in listed
        assert (
            installation.neoplug("recipes", name, cwd=tmp_path).out == (ROOT / "recipes" / f"{name}.yaml").read_text()
        )


def test_a_recipe_extends_a_shipped_one(installation, recipe, tmp_path):
    models = recipe.read_text().split("adapter:")[0]
    file = tmp_path / "child.yaml"
    file.write_text(f"extends: base\n{models}")
    answer = installation.neoplug("plan", file, "--json", cwd=tmp_path)
    assert answer.code == 0, answer.err
    plugins = {(plugin["section"], plugin["name"]) for plugin in json.loads(answer.out)["plugins"]}
    assert {("adapter", "lora"), ("loss", "forward_kl")} <= plugins


def test_the_wheel_holds_every_source_and_nothing_else(wheels):
    (wheel,) = wheels.glob("neoplug-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {"neoplug/py.typed"}
    for folder, name in ((ROOT / "neoplug", "neoplug"), (ROOT / "recipes", "neoplug_recipes")):
        wanted |= {f"{name}/{file.relative_to(folder)}" for file in folder.rglob("*.py")}
    wanted |= {str(file.relative_to(ROOT / "plugins")) for file in (ROOT / "plugins").rglob("*.py")}
    wanted |= {str(file.relative_to(ROOT / "plugins")) for file in (ROOT / "plugins").rglob("matrix.json")}
    wanted |= {f"neoplug/{file.relative_to(ROOT / 'neoplug')}" for file in (ROOT / "neoplug").rglob("templates/*")}
    recipes = (file for file in (ROOT / "recipes").rglob("*") if file.suffix in (".yaml", ".json", ".jsonl"))
    wanted |= {f"neoplug_recipes/{file.relative_to(ROOT / 'recipes')}" for file in recipes}
    assert held == wanted


def test_a_new_package_is_installed_with_its_plugin_and_its_recipe(with_new_package):
    checked = with_new_package.neoplug("check", "--package", "neoplug-my-loss", "--json")
    assert checked.code == 0, checked.out + checked.err
    assert [plugin["result"] for plugin in json.loads(checked.out)["plugins"]] == ["passes"]
    assert "neoplug-my-loss/try" in with_new_package.neoplug("recipes").out
    preview = with_new_package.neoplug("preview", "neoplug-my-loss/try")
    assert preview.code == 0, preview.err


def test_a_package_built_for_an_earlier_version_still_works(with_new_package):
    """Its wheel is kept as it was built. A deprecation would warn at a line of its files."""
    checked = with_new_package("python", "-W", "always", "-m", "neoplug", "check", "--package", PACKAGE, "--json")
    assert checked.code == 1, checked.err
    assert results(checked) == RESULTS
    assert "neoplug_example_plugins" not in checked.err

"""Models, adapters and data of the hub are pinned: `recipe.yaml` of a run names the commits that the run used.

The caches of huggingface_hub and datasets are laid out by hand, as a download leaves them; `refs/main` moves.
"""

import json
import shutil

import pytest
import yaml

from neoplug import recipe
from neoplug.errors import RecipeError, UsageError
from neoplug.recipe.schema import Data
from neoplug.runs.inputs import find_models

# peft asks the hub, which is not reached, whether the vocabulary was changed
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in some/student")
OLD, NEW, DATA = "0a" * 20, "1b" * 20, "2c" * 20


class Hub:
    """The cache of the hub's files."""

    def __init__(self, folder):
        self.folder = folder

    def commit(self, name, commit, files):
        """Add a commit of a repository, and make it the newest."""
        repository = self.folder / f"models--{name.replace('/', '--')}"
        shutil.copytree(files, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_student):
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub = Hub(tmp_path / "hub")
    hub.commit("some/student", OLD, tiny_student)
    return hub


@pytest.fixture
def other_student(tmp_path, tiny_student):
    """Return the folder of the same model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_student, tmp_path / "other")
    weights = {name: weight * 1.5 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def rows_of_the_hub(tmp_path, monkeypatch, tiny_chat):
    """Store the dataset some/rows in the cache of `datasets`, at DATA."""
    import datasets

    built, folder = tmp_path / "built", tmp_path / "cache" / "some___rows" / "default" / "0.0.0" / DATA
    datasets.load_dataset("json", data_files=str(tiny_chat), split="train", cache_dir=str(built))
    folder.mkdir(parents=True)
    (arrow,), (info,) = built.rglob("*.arrow"), built.rglob("dataset_info.json")
    shutil.copy(arrow, folder / "rows-train.arrow")
    values = json.loads(info.read_text()) | {"dataset_name": "rows", "config_name": "default"}
    values["splits"]["train"]["dataset_name"] = "rows"
    (folder / "dataset_info.json").write_text(json.dumps(values))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_the_recipe_of_a_run_replays_the_commits_that_the_run_used(lab, hub, rows_of_the_hub, other_student):
    """The hub moves on after the first run: its own recipe gives the same numbers, the given one other numbers."""
    given = lab.recipe(student={"model": "some/student"}, data={"source": "some/rows"}, train={"max_steps": 2})
    first = lab.run("first", given)
    resolved = yaml.safe_load((first.path / "recipe.yaml").read_text())
    assert resolved["student"]["revision"] == first.lock["models"]["student"]["revision"] == OLD
    assert resolved["data"]["revision"] == first.lock["commits"]["source"] == DATA
    assert "revision" not in first.lock["recipe"]["student"]  # which is the recipe as it was given
    hub.commit("some/student", NEW, other_student)
    again, moved = lab.run("again", first.path / "recipe.yaml"), lab.run("moved", given)
    assert again.facts == first.facts
    assert again.adapter_bytes == first.adapter_bytes
    assert moved.facts != first.facts
    assert moved.lock["models"]["student"]["revision"] == NEW


@pytest.mark.parametrize("which", ["given", "resolved"])
def test_a_run_is_resumed_at_its_commits_by_either_recipe(lab, hub, other_student, tmp_path, which):
    lab.plugin("stop", """
        @dataclass(eq=False)
        class Stop:
            @hookimpl
            def on_step_end(self, step):
                if step == 4 and not Path("went_on").exists():
                    raise ValueError("stopped")
    """)  # fmt: skip
    given = lab.recipe(student={"model": "some/student"}, probes={"./stop.py:Stop": {}})
    whole = lab.run("whole", student={"model": "some/student"})
    with pytest.raises(Exception, match="stopped"):
        lab.run("stopped", given)
    hub.commit("some/student", NEW, other_student)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "went_on").touch()
        resolved = lab.folder / "stopped" / "recipe.yaml"
        resumed = lab.run("stopped", given if which == "given" else resolved, resume=True)
    assert resumed.facts == whole.facts
    named = lab.recipe("named", student={"model": "some/student", "revision": NEW}, probes={"./stop.py:Stop": {}})
    with pytest.raises(UsageError, match=rf'student\.revision: \(absent\) -> "{NEW}"'):
        lab.run("stopped", named, resume=True)


def test_an_adapter_of_the_hub_is_read_at_its_revision(lab, hub):
    first = lab.run("first", train={"max_steps": 2})
    hub.commit("some/adapter", OLD, first.path / "adapter")
    changed = {"adapter_path": "some/adapter"}
    second = lab.run("second", student=changed, train={"max_steps": 2})
    assert second.lock["models"]["student"]["adapter"]["revision"] == OLD
    hub.commit("some/adapter", NEW, second.path / "adapter")
    checked = recipe.load(second.path / "recipe.yaml")
    assert find_models(checked)["student"].adapter.revision == checked.recipe.student.adapter_revision == OLD
    assert find_models(recipe.load(lab.recipe(student=changed)))["student"].adapter.revision == NEW


def test_the_evaluation_source_has_a_revision_of_its_own(lab, rows_of_the_hub):
    given = lab.recipe(data={"eval_source": "some/rows", "held_out": None}, train={"max_steps": 1})
    first = lab.run("first", given)
    assert yaml.safe_load((first.path / "recipe.yaml").read_text())["data"]["eval_revision"] == DATA
    other = lab.recipe(data={"eval_source": "some/rows", "eval_revision": NEW, "held_out": None})
    with pytest.raises(RecipeError, match=f"some/rows is at commit {DATA}, and the recipe names {NEW}"):
        lab.run("other", other)
    with pytest.raises(ValueError, match="`eval_revision` is that of an `eval_source`"):
        Data(source="some/rows", eval_revision=NEW)

"""Datasets of the hub without network: the cache of `datasets` is laid out by hand as an earlier download leaves it."""

import json
import shutil

import pytest

from neoplug.data import load_corpus
from neoplug.errors import RecipeError

COMMIT = "0123456789" * 4


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Store the dataset some/one with 9 rows in the cache of `datasets`, at COMMIT."""
    import datasets

    file, built = tmp_path / "rows.jsonl", tmp_path / "built"
    file.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(9)))
    datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(built))
    folder = tmp_path / "cache" / "some___one" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    (arrow,) = built.rglob("*.arrow")
    shutil.copy(arrow, folder / "one-train.arrow")
    (info,) = built.rglob("dataset_info.json")
    values = json.loads(info.read_text()) | {"dataset_name": "one", "config_name": "default"}
    values["splits"]["train"]["dataset_name"] = "one"
    (folder / "dataset_info.json").write_text(json.dumps(values))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("revision", [None, "v2", COMMIT])
@pytest.mark.parametrize("more", [{}, {"max_rows": 5}, {"max_rows": 5, "streaming": True}])
def test_the_commit_is_reported_and_recorded(cached, section, tiny_tokenizer, revision, more):
    corpus = load_corpus(section("some/one", revision=revision, held_out=1, **more), tiny_tokenizer)
    assert corpus.commits == {"source": COMMIT}
    assert f"data: some/one is read at commit {COMMIT}" in corpus.report.lines()
    assert corpus.report.read[""].rows == (5 if more else 9)


@pytest.mark.parametrize("more", [{}, {"max_rows": 5, "streaming": True}])
def test_another_commit_than_the_recipe_names_is_refused(cached, section, tiny_tokenizer, more):
    with pytest.raises(RecipeError) as caught:
        load_corpus(section("some/one", revision="f" * 40, **more), tiny_tokenizer)
    (problem,) = caught.value.problems
    assert problem.path == ("data", "revision")
    assert f"some/one is at commit {COMMIT}, and the recipe names {'f' * 40}" in problem.what


def test_a_configuration_that_the_cache_lacks_is_named(cached, section, tiny_tokenizer):
    with pytest.raises(RecipeError) as caught:
        load_corpus(section("some/one", name="other"), tiny_tokenizer)
    assert caught.value.problems[0].path == ("data", "name")
    assert "name: default" in caught.value.problems[0].fix

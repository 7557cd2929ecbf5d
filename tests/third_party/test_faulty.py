"""Plugins of a third-party package with faults: each gives one error that names it, and hurts no other run."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.packages import install

SOURCE = Path(__file__).parent / "faulty"
RECIPE = """
teacher: {{model: {teacher}}}
student: {{model: {student}}}
data: {{source: {chat}, max_length: 64, held_out: 4}}
adapter: {{lora: {{r: 2}}}}
train: {{max_steps: 2, per_device_train_batch_size: 4}}
"""
KL = "loss: {neoplug:forward_kl: {}}\n"
OWNER = "(neoplug-faulty-plugins 0.2.1)"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install the package with the faults."""
    return install(shutil.copytree(SOURCE, tmp_path / "faulty"), monkeypatch)


@pytest.fixture
def run(tmp_path, neoplug, package, tiny_teacher, tiny_student, tiny_chat):
    """Return a function that runs a recipe with these sections: its answer, and the run's directory.

    An override of the command follows the sections, after `--`.
    """

    def run(written):
        sections, *overrides = written.split("--")
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE.format(teacher=tiny_teacher, student=tiny_student, chat=tiny_chat) + sections)
        return neoplug("run", file, *overrides, "--output", tmp_path / "run"), tmp_path / "run"

    return run


@pytest.mark.parametrize(
    ("sections", "names", "hook"),
    [
        ("loss: {detached: {}}\n", "`detached`", "token_loss"),
        ("loss: {of_none: {}}\n", "`of_none`", "token_loss"),
        ("loss: {of_lists: {}}\n", "`of_lists`", "token_loss"),
        ("loss: {of_floats: {}}\n", "`of_floats`", "token_loss"),
        ("loss: {too_short: {}}\n", "`too_short`", "token_loss"),
        ("loss: {raising: {}}\n", "`raising`", "token_loss"),
        ("loss: {neoplug-faulty-plugins:forward_kl: {}}\n", "`neoplug-faulty-plugins:forward_kl`", "token_loss"),
        (KL + "token_weights: {negative: {}}\n", "`negative`", "token_weight"),
        (KL + "treatments: {wrong_ids: {}}\n", "`wrong_ids`", "edit_batch"),
        (KL + "treatments: {returned_batch: {}}\n", "`returned_batch`", "edit_batch"),
        (KL + "treatments: {wrong_documents: {}}\n", "`wrong_documents`", "edit_documents"),
        (KL + "treatments: {detached_penalty: {}}\n", "`detached_penalty`", "penalty"),
        (KL + "--teacher.cache={of_rows: {}}", "`of_rows`", "encode_teacher"),
        (KL + "probes: {of_tensors: {}}\n", "`of_tensors`", "on_evaluate"),
        (KL + "optimizer: {no_optimizer: {}}\n", "`no_optimizer`", "make_optimizer"),
    ],
)
def test_a_wrong_answer_names_plugin_hook_line_and_package(run, sections, names, hook):
    answer, folder = run(sections)
    assert answer.code == 1
    message = answer.err[answer.err.index(names) :]
    assert hook in message
    assert OWNER in message
    file, line = re.search(r"^at: (\S+neoplug_faulty_plugins/\w+\.py):(\d+) ", answer.err, re.M).groups()
    assert Path(file).read_text().splitlines()[int(line) - 1].strip()
    assert "\nfix: " in answer.err
    assert "Traceback" not in answer.err
    trained = (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()
    assert not trained


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ("loss: {not_importable: {}}\n", ["`not_importable`", "neoplug-faulty-plugins 0.2.1", "a_library_that_is_not"]),
        ("loss: {not_there: {}}\n", ["`not_there`", "neoplug-faulty-plugins 0.2.1", "has no `NotThere`"]),
        (KL + "token_weights: {odd_options: {weight_of_classes: [1]}}\n", ["odd_options", "weight_of_classes"]),
        (KL + "token_weights: {unmarked: {}}\n", ["unmarked", "token_weight", "@hookimpl"]),
        (KL + "--teacher.cache={unread: {}}", ["unread", "encode_teacher", "decode_teacher"]),
        (KL + "token_weights: {other_arguments: {}}\n", ["other_arguments", "students", "did you mean `student`?"]),
    ],
)
def test_what_the_class_shows_is_refused_before_models_are_loaded(run, sections, words):
    answer, folder = run(sections)
    assert answer.code == 2
    assert [word for word in [*words, "neoplug-faulty-plugins 0.2.1"] if word not in answer.err] == []
    assert "not_" in sections or re.search(r"neoplug_faulty_plugins/others\.py:\d+", answer.err)  # or has no line
    assert re.search(r"(recipe\.yaml|override):\d+:\d+: ", answer.err)
    assert "Traceback" not in answer.err
    assert not folder.exists()


def test_a_name_of_neoplug_stays_neoplugs(run):
    answer, folder = run("loss: {forward_kl: {}}\n")
    assert answer.code == 0, answer.err
    lock = json.loads((folder / "lock.json").read_text())
    assert "neoplug-faulty-plugins" not in json.dumps(lock)


def test_every_plugin_is_listed(neoplug, package):
    rows = json.loads(neoplug("plugins", "--json").out)
    listed = {row["name"] for row in rows if row["package"] == "neoplug-faulty-plugins"}
    assert listed == set(package["entry-points"]["neoplug"])

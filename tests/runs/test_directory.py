"""The run directory: created atomically, exact in every digit, and never overwritten."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from importlib import metadata
from types import SimpleNamespace

import pytest
import yaml

from neoplug.errors import UsageError
from neoplug.recipe.schema import Data, Recipe, Student
from neoplug.registry import Entry
from neoplug.runs.directory import RunDir, chosen_output, default_output
from neoplug.runs.lock import difference, lock_record
from neoplug.runs.result import RunResult

RECIPE = {
    "format": 1, "student": {"model": "a"}, "data": {}, "loss": {}, "train": {"max_steps": 3, "learning_rate": 1e-5},
    "adapter": {"lora": {"r": 4}}, "seed": 0,
}  # fmt: skip
LOCK = {
    "format": 1, "recipe": RECIPE, "seed": 0, "platform": "", "versions": {}, "hardware": {"cpu": "", "gpus": []},
    "computation": {"device": "cpu", "dtypes": {"student": "float32"}, "ranks": 1, "threads": 1}, "plugins": {},
    "data": {"fingerprint": ""}, "models": {"student": {"source": "a", "revision": None, "sha256": None}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "runs" / "first", RECIPE, LOCK)


def test_a_new_run_holds_recipe_and_lock_and_nothing_else(run):
    assert sorted(path.name for path in run.path.iterdir()) == ["contents.json", "lock.json", "recipe.yaml"]
    assert yaml.safe_load((run.path / "recipe.yaml").read_text()) == RECIPE
    assert json.loads((run.path / "lock.json").read_text()) == LOCK
    assert RunDir.open(run.path) == run
    assert run.resolved == RECIPE
    assert run.lock == LOCK
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]


def test_a_run_is_never_overwritten(run):
    before = (run.path / "recipe.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"--resume(.|\n)*--output") as caught:
        RunDir.create(run.path, {}, {})
    assert caught.value.exit_code == 2
    assert (run.path / "recipe.yaml").read_bytes() == before


def full_folder(path):
    path.mkdir()
    (path / "notes").write_text("mine")


@pytest.mark.parametrize("make", [full_folder, lambda path: path.write_text("mine")])
def test_a_path_that_is_no_run_is_not_overwritten_either(tmp_path, make):
    make(tmp_path / "taken")
    with pytest.raises(UsageError, match="exists"):
        RunDir.create(tmp_path / "taken", RECIPE, LOCK)


def test_a_run_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(yaml.YAMLError):
        RunDir.create(tmp_path / "run", {"seed": object()}, LOCK)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_recipe_and_lock_is_no_run(tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("seed: 0\n")
    for name in ("half", "none"):
        assert not RunDir.is_run(tmp_path / name)
        with pytest.raises(UsageError, match="no run directory"):
            RunDir.open(tmp_path / name)


AWKWARD = [0.1, 1 / 3, math.pi, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 1, 1e-7]


def test_metrics_keep_every_digit(run):
    run.metrics.append({"step": step, "loss": value, "losses": {"a": value}} for step, value in enumerate(AWKWARD, 1))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == AWKWARD
    assert [math.copysign(1, line["losses"]["a"]) for line in lines] == [math.copysign(1, value) for value in AWKWARD]
    run.metrics.cut(4)
    assert [line["loss"] for line in run.metrics.read()] == AWKWARD[:4]


def test_metrics_are_appended_in_one_write(run, monkeypatch):
    """Strict JSON without NaN, one line each, on disk when append returns."""
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_size), fsync(number)))
    run.metrics.append([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": math.inf}])
    file = run.path / "metrics.jsonl"
    assert file.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": null}\n'
    assert synced == [file.stat().st_size]


def test_cut_drops_later_steps_and_an_incomplete_line(run):
    run.metrics.append({"step": step, "loss": step / 3} for step in range(1, 6))
    file = run.path / "metrics.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole) + whole[-1][:9])
    assert [line["step"] for line in run.metrics.read()] == [1, 2, 3, 4, 5]
    run.metrics.cut(3)
    assert file.read_text() == "".join(whole[:3])
    run.metrics.append([{"step": 4, "loss": 4 / 3}])
    assert file.read_text() == "".join(whole[:4])
    run.metrics.cut(0)
    assert file.read_text() == ""


def test_cut_of_a_run_without_metrics_does_nothing(run):
    run.metrics.cut(7)
    assert run.metrics.read() == []


def test_a_kill_during_append_loses_no_earlier_line(run):
    """A process killed while it writes leaves lines 1..n complete; `cut` continues from there."""
    script = """
        import sys
        from pathlib import Path
        from neoplug.runs.metrics_file import MetricsFile
        metrics, step = MetricsFile(Path(sys.argv[1])), 0
        while True:
            step += 1
            metrics.append([{"step": step, "loss": 1 / step}])
            if step == 20:
                print("going", flush=True)
    """
    file = run.path / "metrics.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = [line["step"] for line in run.metrics.read()]
    assert len(steps) >= 20
    assert steps == list(range(1, len(steps) + 1))


def test_result_is_strict_json(run):
    assert run.result is None
    run.write_result(RunResult(status="failed", after={"perplexity": math.inf}))
    assert json.loads((run.path / "result.json").read_text()) == {"status": "failed", "after": {"perplexity": None}}
    assert run.result.status == "failed"


def test_contents_list_the_size_of_files_and_folders(run):
    (run.adapter / "deep").mkdir(parents=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"x" * 300)
    (run.adapter / "deep" / "more").write_bytes(b"x" * 30)
    run.log.write_text("a note\n")
    sizes = dict(run.contents())
    assert sizes["adapter/"] == 330
    assert sizes["log.txt"] == 7
    assert list(sizes) == ["adapter/", "contents.json", "lock.json", "log.txt", "recipe.yaml"]


def test_a_default_output_is_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []
    for _ in range(3):
        paths.append(default_output("my.recipe"))
        paths[-1].mkdir(parents=True)
    assert len(set(paths)) == 3
    assert all(path.parent.name == "runs" and path.name.startswith("my.recipe-2") for path in paths)


def test_output_on_the_command_line_wins_over_the_recipe(tmp_path):
    assert str(chosen_output("a", "b", "name", False)) == "a"
    assert str(chosen_output(None, "b", "name", True)) == "b"
    assert str(chosen_output(None, None, "name", False)).startswith("runs")
    with pytest.raises(UsageError, match="--output DIR"):
        chosen_output(None, None, "name", True)


def test_difference_names_each_changed_value():
    old = {"train": {"max_steps": 10, "lr": 0.1}, "adapter": {"lora": {}}, "seed": 0, "columns": ["a"]}
    new = {"seed": 0, "columns": ["a", "b"], "adapter": {"dora": {"r": 4}}, "train": {"lr": 0.1, "max_steps": 20}}
    assert difference(old, new) == [
        "adapter.dora.r: (absent) -> 4",
        "adapter.lora: {} -> (absent)",
        'columns: ["a"] -> ["a", "b"]',
        "train.max_steps: 10 -> 20",
    ]
    assert difference(old, old) == []
    assert difference({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}) == []
    assert difference({"a": True}, {"a": 1}) == ["a: true -> 1"]


def test_the_lock_holds_versions_hashes_seed_and_hardware(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("class Own: ...\n")
    entries = {
        ("probes", "./own.py:Own"): Entry("Own", str(own), "", f"{own}:Own"),
        ("loss", "forward_kl"): Entry("forward_kl", "neoplug", "9", "neoplug_losses.forward_kl:ForwardKL"),
    }
    located = SimpleNamespace(source="here", revision="main", sha256="ab", path="/elsewhere", adapter=None)
    checked = SimpleNamespace(
        recipe=Recipe(seed=7, student=Student(model="a"), data=Data(source="here")),
        entries=entries,
        resolved=lambda: RECIPE,
    )
    lock = lock_record(checked, {"student": located, "teacher": None}, "feed")
    assert lock["format"] == 1
    assert lock["recipe"] == RECIPE
    assert lock["seed"] == 7
    assert lock["data"] == {"fingerprint": "feed"}
    assert lock["models"] == {"student": {"source": "here", "revision": "main", "sha256": "ab"}}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "pluggy"):
        assert lock["versions"][package] == metadata.version(package)
    assert lock["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert lock["plugins"]["loss.forward_kl"] == {
        "package": "neoplug",
        "version": "9",
        "target": "neoplug_losses.forward_kl:ForwardKL",
    }
    assert lock["plugins"]["probes../own.py:Own"]["sha256"] == hashlib.sha256(own.read_bytes()).hexdigest()
    assert lock["hardware"]["cores"] >= 1
    assert lock["hardware"]["memory_bytes"] > 2**28
    shuffled = SimpleNamespace(**vars(checked) | {"entries": dict(reversed(entries.items()))})
    again = lock_record(shuffled, {"teacher": None, "student": located}, "feed")
    assert json.dumps(again) == json.dumps(lock)


@pytest.mark.parametrize(
    ("data", "recorded"),
    [
        (
            {"source": "some/one", "name": "sft", "revision": "v2"},
            {"sources": {"source": {"name": "sft", "revision": "v2"}}},
        ),
        ({"sources": {"a": {"source": "x", "name": "sft"}, "b": {"source": "y"}}}, {"sources": {"a": {"name": "sft"}}}),
        ({"source": "x", "chat_template_kwargs": {"effort": "low"}}, {"chat_template_kwargs": {"effort": "low"}}),
    ],
)
def test_the_lock_holds_what_the_recipe_names_of_its_data(data, recorded):
    recipe = Recipe(student=Student(model="a"), data=Data(**data))
    checked = SimpleNamespace(recipe=recipe, entries={}, resolved=recipe.model_dump)
    assert lock_record(checked, {}, "feed")["data"] == {"fingerprint": "feed"} | recorded

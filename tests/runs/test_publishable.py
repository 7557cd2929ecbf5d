"""Nothing private is published: no local path, no credential, no held-out text, in any file of a push."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from neoplug.cli import app
from neoplug.errors import UsageError
from neoplug.export.staging import staged
from neoplug.files.contents import record
from neoplug.runs.publishable import publishable, without_text

SECRETS = {
    "HF_TOKEN": "hf_" + "Zq9" * 11,
    "WANDB_API_KEY": "0123456789abcdef0123",
    "MY_PASSWORD": "correct horse",
}


def contents(run):
    """Return the text of all files that are published, but for weights and the tokenizer's vocabulary."""
    files = staged(run, "me/student")
    texts = {name: content if isinstance(content, bytes) else content.read_bytes() for name, content in files.items()}
    return {name: text.decode() for name, text in texts.items() if not name.endswith(("safetensors", "tokenizer.json"))}


def record_again(run):
    """Let the run's record have the present contents of the files that a test changed."""
    names = ("recipe.yaml", "lock.json", "result.json", "adapter/adapter_config.json")
    record(run, *names)


@pytest.fixture(scope="module")
def finished(module_lab):
    return module_lab.run("finished", train={"max_steps": 1})


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of a finished run whose files have something private wherever a file can hold it."""
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    secret = SECRETS["WANDB_API_KEY"]
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    recipe["probes"] = {
        "mine": {"api_key": "abc", "url": f"https://me:{secret}@host/x?token=t0p", "log": str(Path.home() / "x")}
    }
    recipe["data"]["source"] = "~someone/clients/rows.jsonl"
    recipe["output_dir"] = "/scratch/someone/runs/x"
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = json.loads((path / "result.json").read_text())
    row = "What is 7 plus 7?"
    result["after"]["probes"] = {"mine": {"worst_row": row, "rows": [row, 3.0], "score": 0.5}}
    result["quoted"] = row
    result["remarks"] = ["rows of /srv/someone/clients/rows.jsonl were seen"]
    (path / "result.json").write_text(json.dumps(result))
    lock = json.loads((path / "lock.json").read_text())
    lock["plugins"]["loss.mine"] = {"target": "/srv/someone/mine.py:Mine", "package": SECRETS["HF_TOKEN"]}
    (path / "lock.json").write_text(json.dumps(lock))
    config = json.loads((path / "adapter/adapter_config.json").read_text())
    config |= {"tokenizer_name_or_path": "/srv/someone/model", "loftq_config": {"file": "/srv/someone/q.pt"}}
    (path / "adapter/adapter_config.json").write_text(json.dumps(config))
    record_again(path)
    return path


def test_no_file_has_a_local_path_a_secret_or_a_held_out_text(run, monkeypatch, tiny_student):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    held_out = json.loads((run / "result.json").read_text())["sample"]["prompt"].strip()
    private = [
        *SECRETS.values(),
        "abc",
        "t0p",
        "someone",
        "/scratch",
        str(Path.home()),
        str(run.parent),
        held_out,
        "7 plus 7",
    ]
    for name, text in contents(run).items():
        found = [part for part in (*private, str(tiny_student.parent)) if part in text]
        assert not found, name


def test_a_local_base_has_no_name_and_one_of_the_hub_has_its_id_and_commit(run):
    def config():
        return json.loads(contents(run)["adapter_config.json"])

    assert config()["base_model_name_or_path"] is None
    lock = json.loads((run / "lock.json").read_text())
    lock["models"]["student"] |= {"source": "org/base", "revision": "c0ffee", "sha256": None}
    (run / "lock.json").write_text(json.dumps(lock))
    record_again(run)
    assert (config()["base_model_name_or_path"], config()["revision"]) == ("org/base", "c0ffee")
    assert config()["tokenizer_name_or_path"] == "org/base"
    assert config()["r"] == json.loads((run / "adapter/adapter_config.json").read_text())["r"]


def test_measurements_stay_the_same_numbers(run):
    published, own = json.loads(contents(run)["result.json"]), json.loads((run / "result.json").read_text())
    assert published["after"]["probes"] == {"mine": {"rows": [3.0], "score": 0.5}}
    assert published["before"] == own["before"]
    assert contents(run)["metrics.jsonl"] == (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("/srv/me/rows.jsonl", "rows.jsonl"),
        ("/srv/me/my rows/", "my rows"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("../me/rows.jsonl", "rows.jsonl"),
        ("file:///srv/me/rows.jsonl", "rows.jsonl"),
        (r"C:\Users\me\rows.jsonl", "rows.jsonl"),
        ("/srv/me/loss.py:Loss", "loss.py:Loss"),
        ("see /srv/me/a/rows.jsonl, line 3", "see rows.jsonl, line 3"),
        ("https://me:pw@host/a/b?token=x&v=1", "https://*****@host/a/b?token=*&v=1"),
    ],
)
def test_of_a_local_path_the_last_part_is_left(private, public):
    assert publishable({"a": [private]}) == {"a": [public]}


@pytest.mark.parametrize(
    "text",
    [
        "org/model", "data/rows.jsonl", "https://host/a/b", "pypi:dist==1/dist/model.gguf#sha256=ab", "and/or",
        "</think>",         r"\d+", r".*\.(q|v)_proj", "{{ m }}/{{ n }}", "python:pydoc_data.topics", "1/2", "hf://datasets/a/b",
    ],
)  # fmt: skip
def test_other_texts_stay(text):
    assert publishable({"a": text}) == {"a": text}


def test_a_dry_run_lists_the_files_and_sends_nothing(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    shown = CliRunner().invoke(app, ["push", str(run), "me/student", "--dry-run", "--private"])
    assert shown.exit_code == 0
    *files, sentence = shown.stdout.splitlines()
    assert [line.split()[0] for line in files] == [*staged(run, "me/student")]
    assert sentence.startswith("nothing was published: these 7 files")
    assert sentence.endswith("one commit at http://127.0.0.1:1/me/student, made private where it does not exist")


def test_texts_are_left_out_of_measurements():
    assert without_text({"a": "x", "b": {"c": "x", "d": 1}, "e": ["x", 2.0, None]}) == {"b": {"d": 1}, "e": [2.0, None]}


def test_only_files_that_the_run_wrote_are_published(finished, run, tmp_path):
    (tmp_path / "id_rsa").write_text("private")
    (run / "adapter" / "link.txt").symlink_to(tmp_path / "id_rsa")
    before = staged(finished.path, "me/student").keys()
    assert staged(run, "me/student").keys() == before
    (run / "adapter" / "notes.txt").write_text("private")
    assert staged(run, "me/student").keys() == before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_nothing_is_published_that_is_not_what_was_trained(run, name):
    file = run / "adapter" / name
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UsageError, match=f"{name} (is empty|is missing|has|does not have)"):
            staged(run, "me/student")

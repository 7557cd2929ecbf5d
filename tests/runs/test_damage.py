"""Every file of a run, damaged in every way: a command answers as before, or names the file in one message."""

import shutil
import sys
from pathlib import Path

import pytest

from neoplug.cli import main
from neoplug.errors import DamageError, RecipeError
from neoplug.recipe import load
from neoplug.runs.plan import plan

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from damage import WAYS

FILES = (
    "recipe.yaml", "lock.json", "result.json", "metrics.jsonl", "contents.json", "log.txt", "evaluation/before.parquet",
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md",
)  # fmt: skip
UNUSED = {"log.txt", "evaluation/before.parquet", "adapter/README.md"}  # by any command
COMMANDS = {
    "resume": ["run", "RECIPE", "--output", "RUN", "--resume"],
    "eval": ["eval", "RUN", "RECIPE", "--json"],
    "export": ["export", "RUN", "OUT"],
    "lora": ["export", "RUN", "OUT", "--lora"],
    "push": ["push", "RUN", "someone/something", "--dry-run"],
}


@pytest.fixture(scope="module")
def finished(module_lab):
    module_lab.run("finished", train={"max_steps": 2, "save_steps": 1})
    return module_lab.folder


@pytest.fixture
def command(finished, monkeypatch, capfd, tmp_path):
    """Return a function that runs a command on the finished run; it returns the exit code, stdout and stderr."""

    def run(name, run="finished"):
        words = {"RECIPE": finished / "finished-recipe.yaml", "RUN": finished / run, "OUT": tmp_path / "out"}
        line = ["neoplug", *(str(words.get(word, word)) for word in COMMANDS[name])]
        monkeypatch.setattr(sys, "argv", line)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capfd.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


def check(command, run, what, name, way):
    """Damage a file, run the command, restore the run, and check the answer."""
    kept = shutil.copytree(run, run.parent / "kept")
    weights = Path("adapter", "adapter_model.safetensors")
    before = (run / weights).read_bytes()
    try:
        healthy = command(what)
        WAYS[way](run / name)
        code, out, err = command(what)
        assert "Traceback" not in err
        if code:
            assert code == 2
            assert name in err or (name.startswith("adapter") and str(run / "adapter") in err)
            assert "\nfix: " in err or "matches" in err
        elif what == "resume":  # nothing to do, or made again
            assert name == str(weights) or (run / weights).read_bytes() == before
        else:
            assert out == healthy[1]
        return code
    finally:
        shutil.rmtree(run)
        kept.rename(run)


@pytest.mark.parametrize(("number", "name"), [*enumerate(FILES)])
def test_a_damaged_file_is_named_or_not_needed(command, finished, number, name):
    """Each command is tried with another kind of damage."""
    for at, what in enumerate(COMMANDS):
        way = list(WAYS)[(number + at) % len(WAYS)]
        needed = name not in UNUSED and not (name == "metrics.jsonl" and what != "push")
        code = check(command, finished / "finished", what, name, way)
        if way == "deleted" and name in ("contents.json", "result.json") and what != "push":
            continue  # used unverified, or made again by `resume`
        assert code == (2 if needed else 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in COMMANDS if what != "push"])
@pytest.mark.parametrize("name", [name for name in FILES if name != "contents.json"])
def test_it_is_so_too_where_contents_are_not_recorded(command, finished, what, name):
    """Whatever is wrong is then found by the readers, or is not found: but no command ends in a traceback."""
    run = finished / "finished"
    record = (run / "contents.json").read_bytes()
    (run / "contents.json").unlink()
    try:
        for way in [way for way in WAYS if way != "bit-flipped"]:
            check(command, run, what, name, way)
    finally:
        (run / "contents.json").write_bytes(record)


def test_nothing_is_published_that_is_not_recorded(command, finished):
    assert check(command, finished / "finished", "push", "contents.json", "deleted") == 2


def test_a_missing_adapter_file_is_never_looked_up_on_the_hub(command, finished, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", fail)
    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", fail)
    monkeypatch.setattr("peft.utils.save_and_load.file_exists", fail)
    run = finished / "finished"
    (run / "contents.json").rename(finished / "contents.json")
    try:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            for what in ("eval", "export", "lora"):
                check(command, run, what, f"adapter/{name}", "deleted")
    finally:
        (finished / "contents.json").rename(run / "contents.json")


def test_the_saved_student_is_made_again_where_it_was_removed(command, finished):
    run = finished / "finished"
    weights = run / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(run / "adapter")
    assert command("export")[0] == 2
    assert not command("resume")[0]
    assert weights.read_bytes() == before
    assert not command("export")[0]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_of_a_run_is_verified_where_a_recipe_names_it(module_lab, role):
    run = module_lab.folder / f"whole-{role}"
    module_lab.run(run.name, adapter={"full": {}}, train={"max_steps": 1})
    recipe = load(module_lab.recipe("of-a-run", **{role: {"model": str(run / "model")}}))
    plan(recipe, quick=True)
    files = [file for file in sorted((run / "model").iterdir()) if file.name != "README.md"]  # people edit the card
    assert {file.name for file in files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for number, file in enumerate(files):
        content = file.read_bytes()
        list(WAYS.values())[number % len(WAYS)](file)
        message = rf"of-a-run.yaml:\d+:\d+: the model .* is damaged: {file} "
        with pytest.raises(RecipeError, match=message) as caught, recipe.marking():
            plan(recipe, quick=True)
        assert "fix: restore it" in str(caught.value)
        file.write_bytes(content)
    plan(recipe, quick=True)


@pytest.mark.parametrize(
    ("line", "text"), [(1, ""), (2, '{"step": 7}\n'), (1, "null\n"), (2, '{"step": 2, "tokens": \n')]
)
def test_lost_metrics_are_noticed_before_anything_is_trained(module_lab, line, text):
    output = f"lost-{line}-{len(text)}"
    module_lab.run(output, train={"max_steps": 3, "save_steps": 3})
    run = module_lab.folder / output
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[line - 1] = text
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "result.json").unlink()
    with pytest.raises(DamageError, match=rf"metrics\.jsonl .* (line|step) {line}") as caught:
        module_lab.run(output, module_lab.folder / f"{output}-recipe.yaml", resume=True)
    assert "begins again at step 0" in str(caught.value) or "restore it" in str(caught.value)
    assert (run / "checkpoints" / "step-3").is_dir()


def test_a_changed_number_in_the_metrics_is_noticed_before_anything_is_trained(module_lab):
    run = module_lab.run("changed", train={"max_steps": 3, "save_steps": 3}).path
    lines = (run / "metrics.jsonl").read_text()
    at = lines.index('"loss": ') + len('"loss": ')
    (run / "metrics.jsonl").write_text(lines[:at] + chr(ord(lines[at]) ^ 1) + lines[at + 1 :])
    (run / "result.json").unlink()
    with pytest.raises(DamageError, match=r"metrics\.jsonl changed since the checkpoint of step 3"):
        module_lab.run("changed", module_lab.folder / "changed-recipe.yaml", resume=True)
    assert (run / "checkpoints" / "step-3").is_dir()

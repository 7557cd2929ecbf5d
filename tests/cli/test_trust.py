"""Nothing that a recipe names is imported without the user's consent, by any command: each sentence of SECURITY.md."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import yaml

from neoplug.files.contents import record

CODE = """
import sys
from dataclasses import dataclass
from pathlib import Path

from neoplug import hookimpl

Path({mark!r}).touch()
texts = {{"a": "A text of some words. " * 40, "b": "Another text of other words. " * 40}}
{name} = texts


@dataclass(eq=False)
class Loss:
    @hookimpl
    def token_loss(self, student, labels):
        return -student[range(len(labels)), labels]


@dataclass(eq=False)
class Vectors:
    @hookimpl
    def add_adapter(self, model):
        return model
"""


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """Give each test its own list of what is trusted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings" / "neoplug" / "trusted.json"


@pytest.fixture
def mark(tmp_path):
    """Return the file that the code of a test creates when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def code(mark):
    """Return a function that writes a file of code with a plugin, and with a map of texts named as the file."""

    def code(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE.format(mark=str(mark), name=file.stem))
        return file

    return code


@pytest.fixture
def write(tmp_path, tiny_student, tiny_chat):
    """Return a function that writes a new recipe with these changes in the folder `mine`."""
    numbers = count()

    def write(folder="mine", name=None, **changes):
        values = {
            "student": {"model": str(tiny_student)},
            "data": {"source": str(tiny_chat), "max_length": 64, "held_out": 4},
            "adapter": {"lora": {"r": 2}},
            "loss": {"cross_entropy": {}},
            "train": {"max_steps": 1, "per_device_train_batch_size": 1},
        }
        file = tmp_path / folder / (name or f"recipe{next(numbers)}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(values | changes))
        return file

    return write


def commands(recipe, tmp_path):
    """Return the commands that read a recipe."""
    return [
        ("plan", recipe),
        ("plan", recipe, "--json"),
        ("preview", recipe),
        ("cache", recipe),
        ("run", recipe, "--output", tmp_path / "out"),
        ("eval", tmp_path, recipe),
    ]


def test_an_absolute_file_is_imported_by_no_command(neoplug, tmp_path, write, code, mark, tiny_student):
    """Not even where it lies in the recipe's own folder: only a relative path says that the two belong together."""
    file = code(tmp_path / "mine" / "x.py")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    recipe = write(loss={f"{file}:Loss": {}})
    for command in commands(recipe, tmp_path):
        answer = neoplug(*(tiny_student if argument == tmp_path else argument for argument in command))
        assert (answer.code, answer.out) == (2, "")
        assert f"{recipe}:" in answer.err
        assert f"{file}, sha256 {digest[:12]}" in answer.err
        assert f"fix: read it, then add: --trust {file}" in answer.err
        assert not mark.exists()


def test_every_command_that_names_trust_in_its_error_takes_it(neoplug, tmp_path, write, code, mark):
    file = code(tmp_path / "mine" / "x.py")
    recipe = write(loss={f"{file}:Loss": {}})
    assert "has no cache to build" in neoplug("cache", recipe, "--trust", file).err
    assert mark.exists()


@pytest.mark.parametrize("name", ["../x.py:Loss", "./sub/../../x.py:Loss", "~/x.py:Loss", "./link.py:Loss"])
def test_a_file_above_or_behind_a_link_is_not_imported(neoplug, tmp_path, write, code, mark, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    code(tmp_path / "x.py")
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "link.py").symlink_to("../x.py")
    assert neoplug("plan", write(loss={name: {}})).code == 2
    assert neoplug("plan", write(loss={"cross_entropy": {"calibrate": name}})).code == 2
    assert not mark.exists()


@pytest.mark.parametrize("name", ["./x.py:Loss", "x.py:Loss", "./sub/x.py:Loss", "./link.py:Loss"])
def test_a_file_in_the_folder_of_the_recipe_or_below_runs(neoplug, tmp_path, write, code, mark, name):
    code(tmp_path / "mine" / "x.py")
    code(tmp_path / "mine" / "sub" / "x.py")
    (tmp_path / "mine" / "link.py").symlink_to("sub/x.py")
    assert neoplug("preview", write(loss={name: {}})).code == 0
    assert mark.exists()


def test_a_link_to_a_recipe_stands_in_the_folder_of_what_it_points_to(neoplug, tmp_path, write, code, mark):
    code(tmp_path / "mine" / "x.py")
    (tmp_path / "mine" / "linked.yaml").symlink_to(write("other", loss={"./x.py:Loss": {}}))
    assert "there is no file ./x.py" in neoplug("plan", tmp_path / "mine" / "linked.yaml").err
    assert not mark.exists()


def test_a_file_of_another_user_does_not_run(neoplug, tmp_path, write, code, mark, monkeypatch):
    code(tmp_path / "mine" / "x.py")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    root_owns = (tmp_path / "mine" / "x.py").stat().st_uid == 0
    answer = neoplug("preview", write(loss={"./x.py:Loss": {}}))
    assert answer.code == (0 if root_owns else 2)
    if root_owns:
        os.chown(tmp_path / "mine" / "x.py", 54321, 54321)
        mark.unlink()
        answer = neoplug("preview", write(loss={"./x.py:Loss": {}}))
    assert "belongs to another user" in answer.err
    assert not mark.exists()


def test_files_named_by_a_parent_in_another_folder_do_not_run(neoplug, tmp_path, write, code, mark):
    code(tmp_path / "x.py")
    code(tmp_path / "mine" / "x.py")
    write("mine", "inside.yaml", loss={"./x.py:Loss": {}})
    write(".", "outside.yaml", loss={"./x.py:Loss": {}})
    write(".", "into.yaml", loss={"./mine/x.py:Loss": {}})
    child = tmp_path / "mine" / "child.yaml"
    for parent in ("../outside.yaml", "../into.yaml", str(tmp_path / "outside.yaml")):
        child.write_text(f"extends: {parent}\n")
        assert neoplug("preview", child).code == 2
        assert not mark.exists()
    child.write_text("extends: inside.yaml\n")
    assert neoplug("preview", child).code == 0


def test_a_parent_named_like_an_override_is_none(neoplug, tmp_path, write, code, mark, monkeypatch):
    code(tmp_path / "x.py")
    write("mine", "override", loss={f"{tmp_path}/x.py:Loss": {}})
    (tmp_path / "mine" / "child.yaml").write_text("extends: override\n")
    monkeypatch.chdir(tmp_path / "mine")
    for recipe in ("child.yaml", "override", "./override"):
        assert neoplug("plan", recipe).code == 2
        assert not mark.exists()


def test_a_recipe_from_a_pipe_has_no_folder_of_its_own(tmp_path, write, code, mark):
    code(tmp_path / "mine" / "x.py")
    recipe = write(loss={"./x.py:Loss": {}})
    for name in ("/dev/stdin", "/proc/self/fd/0", "/dev/fd/0"):
        with recipe.open() as text:
            answer = subprocess.run([sys.executable, "-m", "neoplug", "plan", name], stdin=text, capture_output=True)
        assert answer.returncode == 2
        assert not mark.exists()


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "NEOPLUG_HOME"])
def test_files_in_a_cache_do_not_run(neoplug, tmp_path, write, code, mark, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    code(tmp_path / "cache" / "snapshot" / "x.py")
    answer = neoplug("plan", write("cache/snapshot", loss={"./x.py:Loss": {}}))
    assert answer.code == 2
    assert "lies in a folder for downloaded files" in answer.err
    assert not mark.exists()


def test_files_in_the_folder_of_a_run_do_not_run(neoplug, tmp_path, write, code, mark):
    code(tmp_path / "run" / "sub" / "x.py")
    (tmp_path / "run" / "lock.json").write_text("{}")
    recipe = write("run", "recipe.yaml", loss={"./sub/x.py:Loss": {}})
    for command in (("plan", recipe), ("preview", recipe)):
        answer = neoplug(*command)
        assert answer.code == 2
        assert f"lies in the folder of the run {tmp_path / 'run'}" in answer.err
        assert not mark.exists()


@pytest.mark.parametrize(
    "mistake",
    [
        {"seed": -1},
        {"trian": {}},
        {"adapter": {"lroa": {}}},
        {"adapter": {"lora": {"r": "8"}}},
        {"data": {"source": "./nowhere.jsonl"}},
        {"adapter": {"./nowhere.py:A": {}}},
        {"loss": {"./x.py:Loss": {"weight": -1}}},
        {"evaluate": {"metric_for_best_model": "nothing"}},
        {"probes": {"antigravity:Probe": {}}},
        {"optimizer": {}},
    ],
)
def test_nothing_is_imported_where_the_recipe_has_another_mistake(neoplug, tmp_path, write, code, mark, mistake):
    code(tmp_path / "mine" / "x.py")
    changes = {"loss": {"./x.py:Loss": {}}} | mistake
    answer = neoplug("plan", write(**changes))
    assert answer.code == 2
    assert mark.exists() == (mistake == {"optimizer": {}})  # whether a plugin makes an optimizer is in its code


def test_trust_is_remembered_by_content(neoplug, tmp_path, write, code, mark, settings):
    file = code(tmp_path / "x.py")
    recipe = write(loss={f"{file}:Loss": {}})
    assert neoplug("preview", recipe, "--trust", file).code == 0
    assert json.loads(settings.read_text())["trusted"] == {hashlib.sha256(file.read_bytes()).hexdigest(): str(file)}
    assert settings.stat().st_mode & 0o777 == 0o600
    elsewhere = shutil.copy(file, tmp_path / "mine" / "copy.py")
    for name in (f"{file}:Loss", f"{elsewhere}:Loss"):  # the content is what is trusted
        assert neoplug("preview", write(loss={name: {}})).code == 0
    file.write_text(file.read_text() + "\n# changed\n")
    mark.unlink()
    assert neoplug("preview", recipe).code == 2
    assert not mark.exists()
    settings.unlink()  # removing a line, or the file, takes the trust back
    assert neoplug("preview", write(loss={f"{elsewhere}:Loss": {}})).code == 2


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", "{}", '{"trusted": 1}', '{"trusted": {"a": 1}}', "[" * 100_000]
)
def test_a_damaged_list_is_ignored_and_said(neoplug, tmp_path, write, code, mark, settings, content, caplog):
    file = code(tmp_path / "x.py")
    settings.parent.mkdir(parents=True)
    settings.write_text(content)
    settings.chmod(0o600)
    recipe = write(loss={f"{file}:Loss": {}})
    assert neoplug("preview", recipe).code == 2
    assert f"{settings} is ignored: it is damaged" in caplog.text
    assert not mark.exists()
    assert neoplug("preview", recipe, "--trust", file).code == 0
    assert neoplug("preview", recipe).code == 0


def test_a_list_that_others_can_write_is_ignored(neoplug, tmp_path, write, code, settings, caplog):
    file = code(tmp_path / "x.py")
    recipe = write(loss={f"{file}:Loss": {}})
    assert neoplug("preview", recipe, "--trust", file).code == 0
    settings.chmod(0o666)
    assert neoplug("preview", recipe).code == 2
    assert "others may have written it" in caplog.text


def test_trust_needs_something_that_can_be_trusted(neoplug, tmp_path, write):
    (tmp_path / "empty").mkdir()
    for name in ("./nowhere.py", tmp_path / "empty", "nowhere/at/all", "python:no_such_module"):
        answer = neoplug("plan", write(), "--trust", name)
        assert (answer.code, answer.out) == (2, "")
        assert "Traceback" not in answer.err


def test_what_the_user_types_runs(neoplug, tmp_path, write, code, mark):
    file = code(tmp_path / "x.py")
    for exit_code, command in (
        (1, ("check", f"{file}:Vectors")),  # it trains nothing, which the check finds
        (0, ("plugins", f"{file}:Loss")),
        (0, ("preview", write(), f"loss={{{file}:Loss: {{}}}}")),
        (0, ("preview", write(), f"loss.{file}:Loss={{}}")),
    ):
        assert neoplug(*command).code == exit_code
        assert mark.exists()
        mark.unlink()
        file.write_text(file.read_text() + "# a content that is imported again\n")
    recipe = write(loss={f"{file}:Loss": {}})
    assert neoplug("preview", recipe, f"loss.{file}:Loss.weight=2").code == 2  # the recipe names it, not the override
    assert not mark.exists()


@pytest.fixture
def importable(tmp_path, code, monkeypatch):
    """Put a module, and a package with a module in it, on the path of imports."""
    folder = tmp_path / "site"
    code(folder / "exitmod.py")
    code(folder / "pack" / "__init__.py")
    code(folder / "pack" / "inner.py")
    code(folder / "spaces" / "deep" / "inner2.py")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("exitmod", "pack", "pack.inner", "spaces", "spaces.deep", "spaces.deep.inner2"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["exitmod", "pack.inner", "spaces.deep.inner2"])
def test_a_module_needs_trust_wherever_it_is_named(neoplug, tmp_path, write, importable, mark, name, tiny_chat):
    source = f"python:{name}"
    refused = [
        (write(data={"source": source}),),
        (write(data={"source": str(tiny_chat), "eval_source": source}),),
        (write(data={"sources": {"a": {"source": source}, "b": {"source": str(tiny_chat)}}}),),
        (write(), f"data.source={source}"),
        (write(loss={f"{name}:Loss": {}}),),
        (write(), f"loss={{{name}:Loss: {{}}}}"),
    ]
    for arguments in refused:
        answer = neoplug("preview", *arguments)
        assert answer.code == 2
        assert f"--trust {source}" in answer.err
    for command in ("check", "plugins"):
        assert neoplug(command, f"{name}:Vectors").code == 2
    assert not mark.exists()
    assert neoplug("preview", write(data={"source": source}), "--trust", source).code == 0
    assert neoplug("preview", write(loss={f"{name}:Loss": {}})).code == 0
    assert neoplug("plugins", f"{name}:Loss").code == 0
    assert mark.exists()


def test_a_module_in_the_recipes_own_folder_is_its_own_code(neoplug, tmp_path, write, importable, mark):
    plugin = {"pack.inner:Loss": {}}
    assert neoplug("preview", write(folder="beside", loss=plugin)).code == 2
    assert neoplug("preview", write(folder="site", data={"source": "python:pack.inner"})).code == 2
    assert neoplug("preview", write(folder="site/below", loss=plugin)).code == 2
    assert not mark.exists()
    assert neoplug("preview", write(folder="site", loss=plugin)).code == 0
    assert mark.exists()


def test_the_topics_of_pydoc_are_read_without_importing_them(neoplug, write):
    before = sys.modules.pop("pydoc_data.topics", None)
    try:
        assert neoplug("preview", write(data={"source": "python:pydoc_data.topics", "max_length": 64})).code == 0
        assert "pydoc_data.topics" not in sys.modules
    finally:
        if before:
            sys.modules["pydoc_data.topics"] = before


def test_the_current_folder_is_no_place_for_modules(tmp_path, write, code, mark):
    """Under `python -m neoplug`, Python would look there first: also for libraries, and for packages of plugins."""
    code(tmp_path / "cwd" / "here.py")
    code(tmp_path / "cwd" / "typer.py")
    info = tmp_path / "cwd" / "evil-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[neoplug]\nevil = here:Loss\n")
    for changes in ({"data": {"source": "python:here"}}, {"loss": {"evil": {}}}):
        command = [
            sys.executable,
            "-m",
            "neoplug",
            "plan",
            str(write(**changes)),
            "--trust",
            str(tmp_path / "cwd" / "here.py"),
        ]
        answer = subprocess.run(command, cwd=tmp_path / "cwd", capture_output=True, text=True)
        assert answer.returncode == 2, answer.stderr
        assert "there is no module here" in answer.stderr or "no plugin is named `evil`" in answer.stderr
        assert not mark.exists()


def test_python_files_of_a_model_need_trust(neoplug, tmp_path, write, custom_code):
    folder, ran = custom_code
    student = {"model": str(folder), "trust_remote_code": True}
    recipe = write(student=student)
    for command in (("plan", recipe), ("preview", recipe)):
        answer = neoplug(*command)
        assert answer.code == 2
        assert f"--trust {folder}" in answer.err
        assert not ran.exists()
    assert neoplug("preview", write(teacher=student)).code == 2
    assert not ran.exists()
    assert neoplug("preview", write(student={"model": str(folder)}), "student.trust_remote_code=true").code == 0
    ran.unlink()
    assert neoplug("preview", recipe).code == 2
    assert neoplug("preview", recipe, "--trust", folder).code == 0
    assert neoplug("preview", recipe).code == 0
    (folder / "custom.py").write_text((folder / "custom.py").read_text() + "\n# changed\n")
    ran.unlink(missing_ok=True)
    assert neoplug("preview", recipe).code == 2
    assert not ran.exists()


def test_a_model_in_the_recipes_own_folder_may_run_its_files(neoplug, tmp_path, write, custom_code):
    folder, ran = custom_code
    shutil.copytree(folder, tmp_path / "mine" / "model")
    assert neoplug("preview", write(student={"model": "./model", "trust_remote_code": True})).code == 0
    assert ran.exists()


def test_code_in_another_repository_needs_trust_of_its_own(neoplug, tmp_path, write, custom_code):
    folder, ran = custom_code
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "other/code--custom.CustomConfig"
    (folder / "config.json").write_text(json.dumps(config))
    answer = neoplug("preview", write(student={"model": str(folder), "trust_remote_code": True}), "--trust", folder)
    assert answer.code == 2
    assert "--trust other/code" in answer.err
    assert not ran.exists()


def test_a_class_outside_of_the_models_folder_needs_trust_of_its_own(neoplug, tmp_path, write, custom_code):
    folder, ran = custom_code
    config = json.loads((folder / "config.json").read_text())
    evil = shutil.move(folder / "custom.py", tmp_path / "evil.py")
    config["auto_map"]["AutoConfig"] = f"{tmp_path}/evil.CustomConfig"
    model = tmp_path / "mine" / "model"
    shutil.copytree(folder, model)
    for name in ("config.json", "config.4.0.0.json"):  # transformers reads the one that the first names
        (model / "config.json").write_text(json.dumps({**config, "configuration_files": [name]}))
        (model / name).write_text(json.dumps({**config, "configuration_files": [name]}))
        answer = neoplug("preview", write(student={"model": "./model", "trust_remote_code": True}))
        assert answer.code == 2
        assert f"--trust {evil}" in answer.err
        assert not ran.exists()


def test_a_model_of_the_hub_needs_trust_by_its_id(neoplug, write):
    recipe = write(student={"model": "org/custom", "trust_remote_code": True})
    answer = neoplug("preview", recipe)
    assert "`org/custom` names code that you have not trusted" in answer.err
    assert "--trust org/custom" in answer.err
    for trust in (["--trust", "org/custom"], ["student.trust_remote_code=true"]):
        assert "was not found on the hub or in its cache" in neoplug("preview", recipe, *trust).err


def test_task_files_need_trust(neoplug, tmp_path, write, mark):
    pytest.importorskip("lm_eval")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "t.yaml").write_text("task: t\ndoc_to_text: !function code.f\n")
    (tasks / "code.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    probe = {"lm_eval": {"tasks": "t", "include_path": str(tasks)}}
    answer = neoplug("plan", write(probes=probe))
    assert answer.code == 2
    assert f"--trust {tasks}" in answer.err
    assert neoplug("preview", write(probes=probe), "--trust", tasks).code == 0
    shutil.copytree(tasks, tmp_path / "mine" / "tasks")
    (tmp_path / "mine" / "tasks" / "t.yaml").write_text("task: u\n")
    probe["lm_eval"]["include_path"] = "tasks"
    assert neoplug("preview", write(probes=probe)).code == 0
    (tasks / "t.yaml").write_text("task: v\n")
    probe["lm_eval"]["include_path"] = str(tasks)
    assert neoplug("preview", write(probes=probe)).code == 2
    assert neoplug("preview", write(), f"probes={{lm_eval: {{tasks: t, include_path: {tasks}}}}}").code == 0


def test_a_run_remembers_its_code_and_its_folder_gives_no_consent(neoplug, tmp_path, write, code, mark, settings):
    file = code(tmp_path / "mine" / "x.py")
    recipe = write(adapter={"lora": {"r": 2}}, loss={"./x.py:Loss": {}}, train={"max_steps": 1, "save_steps": 1})
    run = tmp_path / "run"
    assert neoplug("run", recipe, "--output", run).code == 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() in json.loads(settings.read_text())["trusted"]
    assert neoplug("preview", run / "recipe.yaml").code == 0  # its absolute paths name what was trusted
    plain = tmp_path / "mine" / "plain.yaml"
    plain.write_text(write("mine", "plain.yaml").read_text())
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    evil = code(run / "evil.py")
    evil.write_text(evil.read_text() + "\n# another content\n")
    mark.unlink()
    for name in (f"{evil}:Vectors", "./evil.py:Vectors"):
        (run / "recipe.yaml").write_text(yaml.safe_dump(resolved | {"adapter": {name: {}}}))
        record(run, "recipe.yaml", "lock.json")  # whoever writes the folder of a run writes its hashes too
        for command in (
            ("export", run, tmp_path / "exported"),
            ("export", run, tmp_path / "exported", "--lora"),
            ("eval", run, plain),
            ("plan", run / "recipe.yaml"),
            ("run", run / "recipe.yaml", "--output", run, "--resume"),
        ):
            answer = neoplug(*command)
            assert answer.code == 2, (command, answer.err)
            assert f"--trust {evil}" in answer.err
            assert not mark.exists()
    answer = neoplug("push", run, "me/repository")
    assert not mark.exists()


def test_the_python_api_takes_trust(tmp_path, write, code, mark):
    import neoplug
    from neoplug.errors import RecipeError

    file = code(tmp_path / "x.py")
    recipe = write(loss={f"{file}:Loss": {}})
    with pytest.raises(RecipeError, match="names code that you have not trusted"):
        neoplug.run(recipe, output=tmp_path / "out")
    assert not mark.exists()
    assert neoplug.run(recipe, output=tmp_path / "out", trust=[file])["status"] == "completed"
    assert Path(mark).exists()

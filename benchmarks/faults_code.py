"""Hostile recipes: code that a recipe, a run or a model names does not run without the user's consent."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from faults_command import answer, neoplug
from faults_lab import Lab, Result, in_home, recipe

TITLE = "code named by hostile recipes, runs and models"
PROMISE = "nothing is imported without consent"
QUICK = 8
CODE = """
from dataclasses import dataclass
from pathlib import Path
from neoplug import hookimpl

Path({mark!r}).touch()
{name} = {{"a": "A text of some words. " * 40, "b": "Another text of other words. " * 40}}

@dataclass(eq=False)
class Loss:
    @hookimpl
    def token_loss(self, student, labels):
        return -student[range(len(labels)), labels]
"""
MODEL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class CustomConfig(LlamaConfig):
    model_type = "custom"
class CustomModel(LlamaForCausalLM):
    config_class = CustomConfig
"""
CONTROL = "own file"  # the code that may run, and must: else the other cases would show nothing
RECIPES: dict[str, Callable[[Path], dict[str, Any]]] = {  # sections of the recipe, which is in CASE/mine
    CONTROL: lambda case: {"loss": {"./own.py:Loss": {}}},
    "absolute file": lambda case: {"loss": {f"{case}/away/evil.py:Loss": {}}},
    "file above": lambda case: {"loss": {"../away/evil.py:Loss": {}}},
    "file above, disguised": lambda case: {"loss": {"./sub/../../away/evil.py:Loss": {}}},
    "file behind a link": lambda case: {"loss": {"./link.py:Loss": {}}},
    "file in a linked folder": lambda case: {"loss": {"./linked/evil.py:Loss": {}}},
    "file under calibrate": lambda case: {"loss": {"cross_entropy": {"calibrate": "../away/evil.py:Loss"}}},
    "file of a parent": lambda case: {"extends": "../away/parent.yaml", "loss": None},
    "file in each section": lambda case: {
        section: {f"{case}/away/evil.py:Loss": {}} for section in ("treatments", "probes", "token_weights", "optimizer")
    },
    "own file, other mistake": lambda case: {"loss": {"./own.py:Loss": {}}, "seed": -1},
    "own file, unknown key": lambda case: {"loss": {"./own.py:Loss": {}}, "trian": {}},
    "module of data": lambda case: {"data": {"source": "python:evil"}},
    "module of held-out data": lambda case: {
        "data": {"source": str(case / "chat.jsonl"), "eval_source": "python:evil"}
    },
    "module of a plugin": lambda case: {"loss": {"evil:Loss": {}}},
    "module of the current folder": lambda case: {"data": {"source": "python:here"}},
    "module of the library": lambda case: {"data": {"source": "python:antigravity"}},
    "code of a student": lambda case: {"student": {"model": str(case / "away" / "model"), "trust_remote_code": True}},
    "code of a teacher": lambda case: {"teacher": {"model": str(case / "away" / "model"), "trust_remote_code": True}},
    "code of a model above": lambda case: {"student": {"model": "../away/model", "trust_remote_code": True}},
    "tasks of lm_eval": lambda case: {
        "probes": {"lm_eval": {"tasks": ["evil"], "include_path": str(case / "away" / "tasks")}}
    },
    "tasks of lm_eval above": lambda case: {
        "probes": {"lm_eval": {"tasks": ["evil"], "include_path": "../away/tasks"}}
    },
}
COMMANDS = {
    "plan": ("plan", "RECIPE"),
    "plan --json": ("plan", "RECIPE", "--json"),
    "preview": ("preview", "RECIPE"),
    "run": ("run", "RECIPE", "--output", "CASE/out"),
    "eval": ("eval", "STUDENT", "RECIPE"),
}
RUNS = {  # commands on a run whose files name the code, with a record of contents that agrees
    "eval of a run": ("eval", "CASE/finished", "RECIPE"),
    "export of a run": ("export", "CASE/finished", "CASE/out"),
    "lora of a run": ("export", "CASE/finished", "CASE/out", "--lora"),
    "push of a run": ("push", "CASE/finished", "someone/something", "--dry-run"),
    "resume of a run": ("run", "CASE/finished/recipe.yaml", "--output", "CASE/finished", "--resume"),
    "plan of a run's recipe": ("plan", "CASE/finished/recipe.yaml"),
    "preview of a run's recipe": ("preview", "CASE/finished/recipe.yaml"),
}
RUN_CODE = ("CASE/away/evil.py:Loss", "./evil.py:Loss", "evil:Loss")
UNNAMED = {("code of a student", "eval"), ("code of a model above", "eval")}
Case = tuple[str, str]


def cases(lab: Lab) -> Sequence[Case]:
    """Return (where the code is named, command); `eval` has another student than the recipe's."""
    recipes = [(name, command) for name in RECIPES for command in COMMANDS if (name, command) not in UNNAMED]
    return recipes + [(code, command) for code in RUN_CODE for command in RUNS]


def attempt(lab: Lab, case: Case) -> Result:
    """Give a command that reads something hostile, and look whether its code ran."""
    name, command = case
    with lab.copy("home", "finished") as folder:
        mark = folder / "ran"
        _write_code(lab, folder, mark)
        words = COMMANDS.get(command) or RUNS[command]
        if name in RECIPES:
            hostile = {
                key: value for key, value in recipe(lab.folder, **RECIPES[name](folder)).items() if value is not None
            }
            (folder / "mine" / "recipe.yaml").write_text(yaml.safe_dump(hostile, sort_keys=False))
        else:
            _forge_run(folder / "finished", name.replace("CASE", str(folder)))
            (folder / "mine" / "recipe.yaml").write_text(yaml.safe_dump(recipe(lab.folder), sort_keys=False))
        names = {"RECIPE": folder / "mine" / "recipe.yaml", "STUDENT": lab.folder / "student"}
        words = [str(names.get(word, word)).replace("CASE", str(folder)) for word in words]
        found = answer(in_home(folder / "home", lambda: _in_folder(folder, words)))
        ran = mark.exists()
    what = f"{name}, {command}"
    if name == CONTROL:
        return Result("ran in the recipe's own folder", "" if ran else f"{what}: {found.last_line}")
    if ran or found.is_traceback:
        return Result("ran", f"{what}: {'its code ran' if ran else found.last_line}")
    if found.code == 2:
        return Result("refused")
    needs_no_code = name not in RECIPES and not found.code  # such as the export of an adapter without the loss
    return Result("done without the code", "" if needs_no_code else f"{what}: exit {found.code}: {found.last_line}")


def _in_folder(folder: Path, words: Sequence[str]) -> None:
    """Run a command as `python -m neoplug` does in a folder with modules; a second folder is on the path."""
    os.chdir(folder / "cwd")
    sys.path.append(str(folder / "away"))
    neoplug(*words)()


def _write_code(lab: Lab, folder: Path, mark: Path) -> None:
    mine, away = folder / "mine", folder / "away"
    for file in (away / "evil.py", mine / "own.py", folder / "cwd" / "here.py", folder / "finished" / "evil.py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE.format(mark=str(mark), name=file.stem))
    (mine / "sub").mkdir()
    (mine / "link.py").symlink_to("../away/evil.py")
    (mine / "linked").symlink_to("../away")
    (away / "parent.yaml").write_text("loss: {./evil.py:Loss: {}}\n")
    shutil.copy(lab.folder / "chat.jsonl", folder)
    model = shutil.copytree(lab.folder / "student", away / "model")
    (model / "custom.py").write_text(MODEL.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomModel"}
    config |= {"model_type": "custom", "architectures": ["CustomModel"], "auto_map": classes}
    (model / "config.json").write_text(json.dumps(config))
    (away / "tasks").mkdir()
    task = {
        "task": "evil",
        "dataset_path": "json",
        "output_type": "loglikelihood",
        "doc_to_text": "!function code.text",
    }
    (away / "tasks" / "evil.yaml").write_text("\n".join(f"{key}: {value}" for key, value in task.items()))
    (away / "tasks" / "code.py").write_text(CODE.format(mark=str(mark), name="text"))


def _forge_run(run: Path, name: str) -> None:
    """Let a run's recipe name a loss, and its record of contents agree."""
    from neoplug.files.contents import record

    whole = yaml.safe_load((run / "recipe.yaml").read_text())
    whole["loss"] = {name: {}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(whole))
    record(run, "recipe.yaml")

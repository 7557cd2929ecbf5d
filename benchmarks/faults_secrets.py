"""Planted secrets: no file of a run, cache, export or push, and no output, holds one."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from faults_command import answer, neoplug
from faults_lab import Lab, Result, in_home, recipe

TITLE = "planted secrets"
PROMISE = "in no file that is written and in no output"
QUICK = 6
SECRET = "Zq9" * 11
TOKEN = f"hf_{SECRET}"
ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
URL = f"https://me:{SECRET}@host.invalid/rows.jsonl"
PLACES: dict[str, dict[str, Any]] = {  # sections of the recipe; all but the first are refused
    "environment": {},
    "password in a source": {"data": {"source": URL}},
    "token in a source": {"data": {"source": f"https://host.invalid/rows.jsonl?token={SECRET}"}},
    "source": {"data": {"source": TOKEN}},
    "model": {"student": {"model": f"https://me:{SECRET}@host.invalid/model"}},
    "revision": {"student": {"model": "someone/model", "revision": TOKEN}},
    "output_dir": {"output_dir": f"runs/{TOKEN}"},
    "key of a plugin": {"adapter": {f"lora_{TOKEN}": {}}},
    "option of a plugin": {"adapter": {"lora": {"r": TOKEN}}},
    "unknown key": {f"x_{TOKEN}": 1},
    "parent": {"extends": f"./{TOKEN}.yaml"},
    "tracker": {"train": {"report_to": TOKEN}},
}
COMMANDS = {
    "plan": ("plan", "RECIPE"),
    "preview": ("preview", "RECIPE"),
    "run": ("run", "RECIPE", "--output", "CASE/out"),
    "eval": ("eval", "CASE/finished", "RECIPE"),
    "export": ("export", "CASE/finished", "CASE/out"),
    "push": ("push", "CASE/finished", "someone/something"),
}
Case = tuple[str, str]


def cases(lab: Lab) -> Sequence[Case]:
    """Return (place of the secret, command); export and push read no recipe of the user."""
    return [
        (place, command)
        for place in PLACES
        for command in COMMANDS
        if place == "environment" or command not in ("export", "push")
    ]


def attempt(lab: Lab, case: Case) -> Result:
    """Plant a secret, give the command, and search for the secret."""
    place, command = case
    with lab.copy("home", "finished") as folder:
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(lab.folder, **PLACES[place])))
        found = answer(in_home(folder / "home", partial(_command, folder, command)))
        written = [path for path in folder.rglob("*") if path.is_file() and path != file]
        holding = [str(path.relative_to(folder)) for path in written if SECRET.encode() in path.read_bytes()]
        holding += [name for name in ("out", "err") if SECRET in getattr(found, name)]
        named = [str(path.relative_to(folder)) for path in folder.rglob("*") if SECRET in path.name]
    failure = f"{place}, {command}: " if holding or named or found.is_traceback else ""
    if failure:
        failure += ", ".join(holding + named) or found.last_line
    return Result("done" if not found.code else "refused", failure)


def _command(folder: Path, command: str) -> None:
    words = [
        word.replace("CASE", str(folder)).replace("RECIPE", str(folder / "recipe.yaml")) for word in COMMANDS[command]
    ]
    for name in ENVIRONMENT:
        os.environ[name] = TOKEN
    if command != "push":
        neoplug(*words)()
        return
    from neoplug.export.staging import staged

    for name, content in staged(folder / "finished", words[2]).items():
        staged_file = folder / "staged" / name
        staged_file.parent.mkdir(parents=True, exist_ok=True)
        staged_file.write_bytes(content if isinstance(content, bytes) else content.read_bytes())

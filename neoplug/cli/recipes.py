"""`neoplug recipes`: list, print or copy the shipped recipes."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo, table
from neoplug.errors import UsageError, did_you_mean


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", metavar="NAME", show_default=False)] = None,
    copy: Annotated[
        Path | None,
        typer.Option(help="Write it to FILE instead, which must not exist.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """List the shipped recipes, print or copy one."""
    shipped = texts()
    if name is None:
        if copy is not None:
            raise UsageError("--copy needs the name of a recipe\nfix: neoplug recipes NAME --copy FILE")
        table([(key, description(text)) for key, text in shipped.items()])
    elif name not in shipped:
        what = f"there is no shipped recipe {name}{did_you_mean(name, list(shipped))}"
        raise UsageError(f"{what}\nfix: one of {', '.join(shipped)}")
    elif copy is None:
        echo(shipped[name].rstrip("\n"))
    else:
        write(shipped[name], copy)


def texts() -> dict[str, str]:
    """Return the text of each shipped recipe by its name."""
    found = [entry for entry in files("neoplug_recipes").iterdir() if entry.name.endswith(".yaml")]
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in sorted(found, key=lambda entry: entry.name)
    }


def description(text: str) -> str:
    """Return the first line of a recipe where it is a comment, else an empty string."""
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def write(text: str, target: Path) -> None:
    """Write a new file; opening it in exclusive mode makes sure that no existing file is overwritten."""
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists\nwhy: nothing is overwritten\nfix: choose another file") from None
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
    echo(f"{target}: {len(text.encode())} bytes; change it, then: neoplug run {target}")

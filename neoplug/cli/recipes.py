"""`neoplug recipes`: list, print or copy the shipped recipes."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo, table
from neoplug.errors import UsageError, did_you_mean
from neoplug.recipe.source import shipped


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", metavar="NAME", show_default=False)] = None,
    copy: Annotated[
        Path | None,
        typer.Option(help="Write it to FILE instead, which must not exist.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """List the shipped recipes, print or copy one."""
    # A file of another package may not be UTF-8; a run that names it says so.
    known = {key: file.read_text(encoding="utf-8", errors="replace") for key, file in shipped().items()}
    if name is None:
        if copy is not None:
            raise UsageError("--copy needs the name of a recipe\nfix: neoplug recipes NAME --copy FILE")
        table([(key, description(text)) for key, text in known.items()])
    elif name not in known:
        what = f"there is no shipped recipe {name}{did_you_mean(name, list(known))}"
        raise UsageError(f"{what}\nfix: `neoplug recipes` lists them")
    elif copy is None:
        echo(known[name].rstrip("\n"))
    else:
        write(known[name], copy)


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

"""`neoplug push`: upload a run to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo, size, table


def push(
    run: Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")],
    repository: Annotated[str, typer.Argument(help="user/name; created where it does not exist.", metavar="REPO")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be published, and where.")] = False,
) -> None:
    """Push a finished run to the Hugging Face hub.

    One commit holds the adapter (or the model), the prepared student that it needs, the model card, recipe, lock,
    result and metrics, without local paths, credentials and held-out text. A new repository is public unless --private
    is given. The token is that of HF_TOKEN or hf auth login; HF_ENDPOINT selects another hub.
    """
    from neoplug.export import hub

    if not dry_run:
        echo(hub.push(run, repository, private=private))
        return
    sizes, sentence = hub.dry_run(run, repository, private=private)
    table([[name, size(count)] for name, count in sizes.items()])
    echo(sentence)

"""`neoplug push`: upload a run to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo


def push(
    run: Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")],
    repository: Annotated[str, typer.Argument(help="user/name; created where it does not exist.", metavar="REPO")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Push a finished run to the Hugging Face hub.

    One commit holds the adapter (or the model), the prepared student that it needs, the model card, recipe, lock,
    result and metrics. The token is that of HF_TOKEN or hf auth login; HF_ENDPOINT selects another hub.
    """
    from neoplug.export.hub import push as upload

    echo(upload(run, repository, private=private))

"""`neoplug pack`: write a finished run as an archive that others can replay."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo, size


def pack(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.", metavar="RUN")],
    output: Annotated[Path, typer.Argument(help="The archive, as NAME.neoplug; it must not exist.", metavar="FILE")],
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Pack the rows of local files; their licence has to allow it.")
    ] = False,
    with_models: Annotated[
        bool, typer.Option("--with-models", help="Pack local models; their licence has to allow it.")
    ] = False,
) -> None:
    """Pack a finished run as one file that others can replay.

    It holds the recipe, the lock, the metrics, the adapter, and the local files that the recipe names.
    """
    from neoplug.reproduction.packing import pack as write

    packed = write(run, output, with_data=with_data, with_models=with_models)
    for path, name in packed.files.items():
        echo(f"packed: {path} as {name}")
    for path in packed.left_out:
        echo(f"not packed: {path}")
    for name, need in packed.modules.items():
        echo(f"not packed: {name}, {need}")
    echo(f"{output}: {size(output.stat().st_size)}; to replay it: neoplug reproduce {output}")

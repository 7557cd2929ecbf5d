"""`neoplug export`: a run becomes a model that needs neither neoplug nor peft."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import say, size


class Dtype(StrEnum):
    """How the weights are stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    run: Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.", metavar="OUT")],
    dtype: Annotated[
        Dtype, typer.Option(help="How the weights are stored; what is below float32 rounds.")
    ] = Dtype.float32,
) -> None:
    """Write a run's student as a standalone model.

    The adapter is merged in float32 into the stored weights; plain transformers loads the result, tokenizer and all.
    """
    from neoplug.export import export as write

    write(run, out, str(dtype))
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size(total)}, {dtype}")
    trust = ", trust_remote_code=True" if any(out.glob("*.py")) else ""
    say(f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(out)!r}{trust})")

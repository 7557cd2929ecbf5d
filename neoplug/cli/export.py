"""`neoplug export`: write a run's student as a plain transformers model, or as a LoRA for peft, vLLM and llama.cpp."""

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.arguments import Trust
from neoplug.cli.screen import echo, size
from neoplug.errors import UsageError


class Dtype(StrEnum):
    """How the weights are stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    run: Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.", metavar="OUT")],
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the weights; 16-bit types round them.")] = Dtype.float32,
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Write only the change of the base weights, as a plain LoRA, not a whole model."),
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="R",
            help="The LoRA's rank; by default the smallest exact one, if the LoRA is then no larger than the weights.",
        ),
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write the LoRA in llama.cpp's format.")] = False,
    trust: Trust = None,
) -> None:
    """Write a run's student as a standalone model, or as a plain LoRA.

    The adapter is merged in float32 into the stored weights; plain transformers loads the result, tokenizer and all.
    With --lora the change of the base weights, by any adapter, is written as a LoRA for peft, vLLM and llama.cpp
    (--gguf).
    """
    if not lora and (rank or gguf):
        raise UsageError(f"`--{'rank' if rank else 'gguf'}` applies only to a LoRA\nfix: add --lora")
    if lora:
        _export_lora(run, out, str(dtype), rank, gguf, trust or ())
    else:
        _export_model(run, out, str(dtype), trust or ())


def _export_model(run: Path, out: Path, dtype: str, trust: Sequence[str]) -> None:
    """Write the merged model, and print its size and how to load it."""
    from neoplug.export.merge import export as write

    write(run, out, dtype, trust)
    echo(f"{out}: {_size(out)}, {dtype}")
    trust = ", trust_remote_code=True" if any(out.glob("*.py")) else ""
    echo(f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(out)!r}{trust})")


def _export_lora(run: Path, out: Path, dtype: str, rank: int | None, gguf: bool, trust: Sequence[str]) -> None:
    """Write the LoRA, and print its size, its error and how to load it."""
    from neoplug.export.lora import export_lora
    from neoplug.export.peft_files import describe, vllm_max_lora_rank

    fidelity = export_lora(run, out, dtype, rank, gguf, trust)
    echo(f"{out}: {_size(out)}, {dtype}, rank {fidelity.rank} in each of {len(fidelity.layers)} layers")
    echo(describe(fidelity))
    echo(f"load it on its base: peft.AutoPeftModelForCausalLM.from_pretrained({str(out)!r})")
    limit = vllm_max_lora_rank(fidelity.rank)
    echo(f"vLLM: --enable-lora --max-lora-rank {limit}" if limit else f"vLLM does not support rank {fidelity.rank}")
    if gguf:
        echo(f"llama.cpp: --lora {shlex.quote(str(out / 'adapter.gguf'))}")


def _size(folder: Path) -> str:
    """Return the size of all files below a folder as text."""
    return size(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))

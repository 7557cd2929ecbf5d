"""A run's change of its base as a plain LoRA: whatever trained it, peft, vLLM and llama.cpp read it."""

import json
import logging
from pathlib import Path

from neoplug.environment.dtypes import DTYPES
from neoplug.export.gguf_lora import validate_targets, write_gguf
from neoplug.export.low_rank import Fidelity, Product, affordable, changed_layers, decompose, fidelity
from neoplug.export.merge import finished, standalone, unquantised
from neoplug.export.peft_files import write_folder
from neoplug.files import folder_atomically
from neoplug.models.load import load_config
from neoplug.runs.directory import RunDir
from neoplug.runs.saved_student import base_of

log = logging.getLogger("neoplug")

USUAL_RANK = 16  # where the change has no low rank, and its adapter names none


def export_lora(run: Path, out: Path, dtype: str = "float32", rank: int | None = None, gguf: bool = False) -> Fidelity:
    """Write what the finished run `run` changed in its base to the new folder `out`, as a LoRA in peft's own files.

    The change is the difference of the merged and the stored weights in float32, so any adapter that can be merged is
    exported: exactly where the change has low rank, else by its largest components.

    dtype  how the matrices are stored: float32, bfloat16 or float16
    rank   the rank of all layers; None: the smallest that loses nothing but rounding, where the LoRA is then no larger
           than the weights that it changes; else the adapter's own `r`, or 16
    gguf   write adapter.gguf too

    Raises UsageError where `out` exists, `run` is no finished run, its base is not what it was, its adapter cannot be
    merged, or it changed more than linear layers; returns how well the LoRA holds the change.
    """
    directory = finished(run, out, dtype)
    base = base_of(directory)
    if gguf:
        validate_targets(load_config(base).get_text_config())
    after, before = standalone(directory, base), unquantised(base)
    layers = changed_layers(after, before)
    log.info("taking %d layers apart", len(layers))
    most = affordable(layers)
    products = {name: decompose(layer, max(rank or most, 1)) for name, layer in layers.items()}
    chosen = rank or _rank(products, most, directory)
    found = fidelity(layers, products, chosen, DTYPES[dtype])
    matrices = {name: product.padded(chosen, DTYPES[dtype]) for name, product in products.items()}
    with folder_atomically(out) as draft:
        write_folder(draft, matrices, found, before, layers, base)
        if gguf:
            write_gguf(matrices, chosen, before.config.get_text_config(), draft / "adapter.gguf")
    return found


def _rank(products: dict[str, Product], most: int, directory: RunDir) -> int:
    """Return the smallest exact rank if it is no larger than `most`, else the adapter's own or the usual one."""
    needed = max(product.rank for product in products.values())
    if needed <= most:
        return max(needed, 1)
    file = directory.adapter / "adapter_config.json"
    own = json.loads(file.read_text(encoding="utf-8")).get("r") if file.is_file() else None
    return min(own if isinstance(own, int) and own > 0 else USUAL_RANK, most)

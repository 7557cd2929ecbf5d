"""Export of the change that a run made to its base as a plain LoRA for peft, vLLM and llama.cpp, for any adapter."""

import logging
from collections.abc import Sequence
from pathlib import Path

from neoplug.environment.dtypes import DTYPES
from neoplug.export.gguf_lora import validate_targets, write_gguf
from neoplug.export.low_rank import Fidelity, Product, changed_layers, decompose, fidelity, largest_saving_rank
from neoplug.export.merge import load_unquantised, open_for_export, standalone_model
from neoplug.export.peft_files import write_folder
from neoplug.files import folder_atomically, read_json
from neoplug.models.load import load_config
from neoplug.registry.consent import Consent
from neoplug.runs.directory import RunDir
from neoplug.runs.run_files import RESTORE
from neoplug.runs.saved_student import base_of
from neoplug.runs.trained_tokenizer import stored_tokenizer, tokenizer_of

logger = logging.getLogger(__name__)

DEFAULT_RANK = 16  # where the exact rank is too large, and the adapter's configuration has no rank `r`


def export_lora(
    run: Path,
    out: Path,
    dtype: str = "float32",
    rank: int | None = None,
    gguf: bool = False,
    trust: Sequence[str] = (),
) -> Fidelity:
    """Write the change that the finished run `run` made to its base to the new folder `out`, as a LoRA for peft.

    The change is the difference between the merged and the stored weights in float32, so any adapter that can be merged
    can be exported: exactly where the change has low rank, else by its largest components.

    dtype  of the matrices: float32, bfloat16 or float16
    rank   of all layers; None: the smallest that is exact up to rounding, if the LoRA is then no larger than the
           weights that it changes; else the `r` of the adapter, or 16, limited to that size
    gguf   also write adapter.gguf
    trust  code that may run, as `--trust` names it: what the recipe of a run names gives no consent

    Returns how closely the LoRA represents the change. Raises UsageError where `out` exists, `run` is not a finished
    run, its base has changed, its adapter cannot be merged, or the run changed more than linear layers.
    """
    directory, consent = open_for_export(run, out, dtype), Consent(trust=trust)
    base = base_of(directory, consent)
    if gguf:
        validate_targets(load_config(base).get_text_config())
    after, before = standalone_model(directory, base, consent), load_unquantised(base)
    layers = changed_layers(after, before)
    logger.info("decomposing the change of %d layers", len(layers))
    most = largest_saving_rank(layers)
    products = {name: decompose(layer, max(rank or most, 1)) for name, layer in layers.items()}
    chosen = rank or _default_rank(products, most, directory)
    measured = fidelity(layers, products, chosen, DTYPES[dtype])
    matrices = {name: product.padded(chosen, DTYPES[dtype]) for name, product in products.items()}
    with folder_atomically(out) as draft:
        write_folder(draft, matrices, measured, before, layers, base)
        if stored_tokenizer(directory):
            tokenizer_of(directory, base).save_pretrained(draft)
        if gguf:
            write_gguf(matrices, chosen, before.config.get_text_config(), draft / "adapter.gguf")
    return measured


def _default_rank(products: dict[str, Product], most: int, directory: RunDir) -> int:
    """Return the smallest exact rank if it is at most `most`; else the adapter's rank or 16, limited to `most`."""
    needed = max(product.rank for product in products.values())
    if needed <= most:
        return max(needed, 1)
    file = directory.adapter / "adapter_config.json"
    own = read_json(file, RESTORE).get("r") if file.is_file() else None
    return min(own if isinstance(own, int) and own > 0 else DEFAULT_RANK, most)

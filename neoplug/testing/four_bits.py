"""A model in 4 bits beside the same values in full precision."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from neoplug.models.quiet import quiet
from neoplug.registry import Plugins, find
from neoplug.testing.families import tokenizer

FOUR_BITS: dict[str, Any] = {"nf4": {}}  # `student.load` of a recipe


def in_four_bits(base: Any) -> tuple[Any, Any]:
    """Return a model in 4 bits, and in full precision with the same values."""
    from bitsandbytes.functional import dequantize_4bit

    from neoplug.models.load import load_model
    from neoplug.models.resolve import locate

    nf4 = find(next(iter(FOUR_BITS)), Path.cwd()).load()(compute_dtype="float32")  # bfloat16 rounds too much to compare
    with TemporaryDirectory() as folder:
        with quiet():
            base.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        quantised = load_model(
            locate(folder), plugins=Plugins({"student.load": {"nf4": nf4}}), role="student",
            section="student.load", dtype=torch.float32, device="cpu", attn_implementation=None,
        )  # fmt: skip
    plain = copy.deepcopy(base)
    for name, layer in quantised.named_modules():
        if hasattr(getattr(layer, "weight", None), "quant_state"):
            values = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            plain.get_submodule(name).weight.data = values
    return quantised, plain

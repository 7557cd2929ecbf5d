"""A LoRA in llama.cpp's own file: one that `llama-server --lora` adds to a GGUF of the same base.

    general.type = adapter, adapter.type = lora, adapter.lora.alpha = R
    NAME.weight.lora_a [R, I], NAME.weight.lora_b [O, R]

Names are those of the base's GGUF. Some families have their queries and keys stored in another order of rows there,
pairs that rotate together beside each other; the rows of B then follow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neoplug.errors import UsageError

# model_type -> llama.cpp's name of the architecture; weights are stored as they are in transformers, ...
PLAIN = {
    "cohere": "command-r",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
# ... but for rotated pairs
PAIRED = {"granite": "granite", "llama": "llama", "mistral": "llama", "mixtral": "llama", "smollm3": "smollm3"}


def validate_targets(config: Any) -> None:
    """Raise UsageError for a family of which it is not known how llama.cpp stores its weights."""
    if config.model_type not in PLAIN | PAIRED:
        raise UsageError(
            f"it is not known here how llama.cpp names and orders the weights of a `{config.model_type}`\n"
            "why: rows in another order would be added to the wrong outputs, and nothing would tell\n"
            "fix: leave --gguf out, and let llama.cpp's own convert_lora_to_gguf.py read the folder; known are "
            + ", ".join(sorted(PLAIN | PAIRED))
        )


def write_gguf(matrices: Mapping[str, tuple[Tensor, Tensor]], rank: int, config: Any, path: Path) -> None:
    """Write B [O, R] and A [R, I] of each layer, all of one dtype, by the layers' names in transformers.

    Raises UsageError where llama.cpp has no place for a layer.
    """
    import gguf

    validate_targets(config)
    architecture = (PLAIN | PAIRED)[config.model_type]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, (up, down) in matrices.items():
        place = f"{_place(name, names, config)}.weight"
        _add(writer, f"{place}.lora_a", down)
        _add(writer, f"{place}.lora_b", _ordered(up, name, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _place(name: str, names: Any, config: Any) -> str:
    place = names.get_name(name)
    if place is None or (place == "output" and config.tie_word_embeddings):
        why = "it knows no such layer" if place is None else "its file of a tied model has embeddings, and no head"
        raise UsageError(f"llama.cpp has no place for a LoRA on `{name}`\nwhy: {why}\nfix: leave --gguf out")
    return str(place)


def _ordered(up: Tensor, name: str, config: Any) -> Tensor:
    """Return the rows of B [O, R] as llama.cpp has the layer's outputs."""
    layer = name.rpartition(".")[2]
    if config.model_type not in PAIRED or layer not in ("q_proj", "k_proj"):
        return up
    heads = config.num_attention_heads if layer == "q_proj" else config.num_key_value_heads
    return up.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # halves of a head become pairs


def _add(writer: Any, name: str, matrix: Tensor) -> None:
    import gguf

    if matrix.dtype == torch.bfloat16:  # which numpy does not have
        bits = matrix.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, matrix.contiguous().numpy())

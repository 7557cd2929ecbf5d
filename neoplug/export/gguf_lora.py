"""LoRAs in llama.cpp's file format, which `llama-server --lora` applies to a GGUF of the same base.

    general.type = adapter, adapter.type = lora, adapter.lora.alpha = R
    NAME.weight.lora_a [R, I], NAME.weight.lora_b [O, R]

Names are those of the base's GGUF. For some families GGUF stores the rows of queries and keys in another order, with
rotary pairs adjacent; the rows of B are reordered likewise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neoplug.errors import UsageError

# model_type -> llama.cpp's name of the architecture; rows are in the order of transformers, ...
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
# ... or with rotary pairs adjacent
PAIRED = {"granite": "granite", "llama": "llama", "mistral": "llama", "mixtral": "llama", "smollm3": "smollm3"}


def validate_targets(config: Any) -> None:
    """Raise UsageError for a family whose storage order in llama.cpp neoplug does not know."""
    if config.model_type not in PLAIN | PAIRED:
        raise UsageError(
            f"neoplug does not know how llama.cpp names and orders the weights of a `{config.model_type}`\n"
            "why: rows in another order would change the wrong outputs, without an error\n"
            "fix: leave --gguf out, and convert the folder with llama.cpp's convert_lora_to_gguf.py; supported are "
            + ", ".join(sorted(PLAIN | PAIRED))
        )


def write_gguf(matrices: Mapping[str, tuple[Tensor, Tensor]], rank: int, config: Any, path: Path) -> None:
    """Write B [O, R] and A [R, I] of each layer to `path`; keys are module names, all matrices have one dtype.

    Raises UsageError where llama.cpp has no such layer.
    """
    import gguf

    validate_targets(config)
    architecture = (PLAIN | PAIRED)[config.model_type]
    architectures = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[architecture], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, (up, down) in matrices.items():
        tensor = f"{_tensor_name(name, names, config)}.weight"
        _add(writer, f"{tensor}.lora_a", down)
        _add(writer, f"{tensor}.lora_b", _ordered(up, name, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_name(name: str, names: Any, config: Any) -> str:
    """Return llama.cpp's name of the layer `name`. Raises UsageError where a GGUF has no such layer."""
    tensor = names.get_name(name)
    if tensor is None or (tensor == "output" and config.tie_word_embeddings):
        why = "it has no such layer" if tensor is None else "a GGUF of a model with tied embeddings has no head"
        raise UsageError(f"llama.cpp does not support a LoRA on `{name}`\nwhy: {why}\nfix: leave --gguf out")
    return str(tensor)


def _ordered(up: Tensor, name: str, config: Any) -> Tensor:
    """Return B [O, R] with its rows in llama.cpp's order of the layer's outputs."""
    layer = name.rpartition(".")[2]
    if config.model_type not in PAIRED or layer not in ("q_proj", "k_proj"):
        return up
    heads = config.num_attention_heads if layer == "q_proj" else config.num_key_value_heads
    # Rotary pairs: transformers stores the two rows of a pair in the two halves of a head, GGUF next to each other.
    return up.reshape(heads, 2, -1, up.shape[1]).transpose(1, 2).flatten(0, 2)


def _add(writer: Any, name: str, matrix: Tensor) -> None:
    """Add a matrix to the file in its dtype."""
    import gguf

    if matrix.dtype == torch.bfloat16:  # numpy has no bfloat16
        bits = matrix.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, matrix.contiguous().numpy())

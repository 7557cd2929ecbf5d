"""Data types of model weights and computation: by name, and the default of a device."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str | None, device: torch.device | str) -> torch.dtype:
    """Return the torch dtype called `name` (a key of DTYPES); the device's default where `name` is None."""
    return DTYPES[name] if name else default_dtype(device)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Return bfloat16 where the device computes it natively, else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32

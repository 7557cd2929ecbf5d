"""Left out: casts of what LoRA's layers read, which autocast undoes at once.

Peft converts the input of a layer to the type of its matrix A, float32. Under autocast in bfloat16 the product then
converts it back: the same values, after two passes over all activations. Autocast's own cast suffices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def leave_casts_to_autocast(adapted: nn.Module) -> None:
    """Let LoRA's linear layers read their input without a cast under autocast, where no bit of their result changes.

    That is so where the input goes to the product with A alone. Layers with dropout, which would round in the type of
    the input, and those of a variant such as DoRA, which computes more with it, keep the cast.

    Peft's own `disable_input_dtype_casting` includes these, holds outside of autocast too, and has ended when a
    checkpointed layer is computed again.
    """
    from peft.tuners.lora import Linear

    layer: Any
    for layer in adapted.modules():
        plain = type(layer) is Linear and not layer.lora_variant
        if plain and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values()):
            layer._cast_input_dtype = cast_outside_autocast  # peft's method, which all its layers call


def cast_outside_autocast(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a layer's input in `dtype`; unchanged under autocast, which the meta device does not have."""
    under_autocast = not states.is_meta and torch.is_autocast_enabled(states.device.type)
    return states if under_autocast else states.to(dtype)

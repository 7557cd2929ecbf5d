"""Int8: base weights in 8 bits with a scale for each output row, as LLM.int8() stores them (arXiv 2208.07339).

The weights are dequantised as they are used and activations stay as they are, on every device and in evaluation too.
LLM.int8() itself also rounds activations to 8 bits, except outlier columns, which it detects in the whole micro-batch:
then documents of a batch move each other (on SmolLM2-135M by 3 % of the largest hidden state), and on a CPU
bitsandbytes does so in evaluation alone, so that another model is measured than trains (there 7 % away). So there is no
`threshold` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from neoplug import Role, hookimpl
from neoplug_models.quantised import Quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class Int8(Quantised):
    """Load linear layers in 8 bits."""

    @hookimpl
    def load_kwargs(self) -> dict[str, Any]:
        """Quantise on the way in."""
        return self.quantising(load_in_8bit=True)

    @hookimpl
    def after_load(self, model: PreTrainedModel, role: Role) -> None:
        """Let each layer compute with its dequantised weight."""
        from bitsandbytes.nn import Linear8bitLt

        self.validate_fit(model, role, "int8", load_in_8bit=True)
        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                module.init_8bit_state()
                module.forward = MethodType(_forward, module)


class DequantisedLinear(torch.autograd.Function):
    """A linear layer of a frozen 8-bit weight: what is kept for backward is the 8-bit weight, not its floats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """[..., in], [out, in] int8, [out] the largest magnitude of each row -> [..., out]."""
        ctx.save_for_backward(weight, scale)
        return functional.linear(hidden, _floats(weight, scale, hidden.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """[..., out] -> [..., in]."""
        weight, scale = ctx.saved_tensors
        return gradient @ _floats(weight, scale, gradient.dtype), None, None


def _floats(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * (scale / 127)[:, None]).to(dtype)


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    computed: Tensor = DequantisedLinear.apply(hidden, layer.weight, layer.state.SCB)
    return computed if layer.bias is None else computed + layer.bias.to(computed.dtype)

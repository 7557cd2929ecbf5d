"""Int8: base weights in 8 bits with a scale for each output row, as LLM.int8() stores them (arXiv 2208.07339).

Weights are dequantised for each product, and activations are not quantised, on every device, in training and in
evaluation. LLM.int8() itself also rounds activations to 8 bits, except outlier columns, which it detects in the whole
micro-batch. Then the documents of a batch influence each other (on SmolLM2-135M by 3 % of the largest hidden state),
and on a CPU bitsandbytes rounds only in evaluation, so the evaluated model differs from the trained one (by 7 % there).
So there is no option `threshold`.
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
    """Load linear layers in 8 bits, with one scale per output row."""

    @hookimpl
    def load_kwargs(self) -> dict[str, Any]:
        """Return the configuration that quantises while loading."""
        return self.quantisation_kwargs(load_in_8bit=True)

    @hookimpl
    def after_load(self, model: PreTrainedModel, role: Role) -> None:
        """Replace the forward of each quantised layer by a product with its dequantised weight."""
        from bitsandbytes.nn import Linear8bitLt

        self.validate_fit(model, role, "int8", load_in_8bit=True)
        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                module.init_8bit_state()
                module.forward = MethodType(_forward, module)


class DequantisedLinear(torch.autograd.Function):
    """The product with a frozen 8-bit weight, which keeps the 8-bit weight, not the dequantised one, for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """[..., in], [out, in] int8, [out] the largest magnitude of each row -> [..., out]."""
        ctx.save_for_backward(weight, scale)
        return functional.linear(hidden, _dequantise(weight, scale, hidden.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """[..., out] -> [..., in]."""
        weight, scale = ctx.saved_tensors
        return gradient @ _dequantise(weight, scale, gradient.dtype), None, None


def _dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[out, in] int8, [out] -> [out, in]."""
    return (weight * (scale / 127)[:, None]).to(dtype)


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    """Compute a layer with its dequantised weight, in autocast's data type if that is on: [..., in] -> [..., out]."""
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    computed: Tensor = DequantisedLinear.apply(hidden, layer.weight, layer.state.SCB)
    return computed if layer.bias is None else computed + layer.bias.to(computed.dtype)

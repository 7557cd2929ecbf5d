"""LoftQ: each weight is rounded to few bits, and A and B start as the best low-rank part of what the rounding loses.

    W ~ Q + scale B A;  loftq_iter times: Q = rounded(W - scale B A), then scale B A = the r largest components of W - Q

The base of the adapter is Q, which no LoRA turns back into W, so a run ships it as `student/`, in the dtype of the
student: each weight is one of the values of 4 bits (nf4 in blocks of 64, which `load: nf4` with `use_double_quant:
false` keeps) or of 8 (int8, a scale a row). Convention: A and B are divided by the scale; peft's own start is off where
it is not 1.
Source: Li et al. 2023, arXiv 2310.08659.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from neoplug import AdapterTraits, Problem, hookimpl
from neoplug_adapters.lora import LoRA
from neoplug_adapters.low_rank import lora_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from neoplug import Batch, Recipe


@dataclass(eq=False)
class LoftQ(LoRA):
    """LoRA on a base that it rounds itself; options are LoRA's."""

    name: ClassVar[str] = "loftq"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        starts_elsewhere="A and B make up for the largest part of the rounding, not for all",
        changes_base="the base's weights are rounded",
        not_on_quantised="it quantises the student itself, and needs the unquantised weights to compute the error",
        not_on_experts="it rounds and decomposes one matrix at a time",
        seedless="the weights decide",
        own_options=("loftq_bits", "loftq_iter"),
    )
    linear_alone: ClassVar[bool] = True
    takes_components: ClassVar[bool] = True

    init_lora_weights: Literal["loftq"] = "loftq"  # fixed by the plugin
    loftq_bits: Literal[4, 8] = 4  # of each weight
    loftq_iter: int = 1  # rounds of quantising and decomposing, above 0; the paper takes 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loftq_iter < 1:
            raise ValueError(f"loftq_iter is {self.loftq_iter}, but must be above 0")

    def _check_start(self) -> None:
        """Accept it: there is one."""

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student, and one that goes on from an adapter."""
        if problems := super().check(recipe):
            return problems
        if recipe.student.adapter_path is None:
            return []
        what, why = "`loftq` cannot go on from an adapter", "A and B start with what its quantisation loses"
        fix = "to go on from a run of `loftq`, name `lora` and as the model its student/"
        return [Problem(what, why, fix, ("student", "adapter_path"))]

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model))

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        self._validate_ranks(adapted)
        if model.device.type != "meta":
            with torch.no_grad():
                for _, layer in lora_layers(adapted):
                    self._round(layer)
        return adapted

    def _round(self, layer: Any) -> None:
        weight, down, up = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        matrix = weight.T if layer.fan_in_fan_out else weight
        whole, rest = matrix.float(), torch.zeros_like(matrix, dtype=torch.float32)
        for _ in range(self.loftq_iter):
            rounded = (_nf4 if self.loftq_bits == 4 else _int8)(whole - rest).to(weight.dtype)
            left, values, right = torch.linalg.svd(whole - rounded.float(), full_matrices=False)
            root, r = values.sqrt(), layer.r["default"]
            b, a = left[:, :r] * root[:r], root[:r, None] * right[:r]
            rest = b @ a
        matrix.copy_(rounded)
        up.copy_(b / layer.scaling["default"] ** 0.5)
        down.copy_(a / layer.scaling["default"] ** 0.5)

    @hookimpl
    def base_weights(self, model: PeftModel) -> dict[str, Tensor]:
        """Return the rounded base."""
        weights = model.get_base_model().state_dict()
        names = [name for name in weights if ".lora_" not in name and ".modules_to_save." not in name]
        return {name.replace(".base_layer", "").replace(".original_module", ""): weights[name] for name in names}


def _nf4(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=64))


def _int8(weight: Tensor) -> Tensor:
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round() * scale

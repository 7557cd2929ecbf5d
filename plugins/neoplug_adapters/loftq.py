"""LoftQ: each weight is quantised, and A and B start as the best low-rank approximation of the quantisation error.

    W ~ Q + scale B A;  loftq_iter times: Q = quantised(W - scale B A), scale B A = the r largest components of W - Q

The adapter's base is Q, which no LoRA can turn back into W, so a run stores it as `student/`, in the student's dtype.
Its weights are values of 4 bits (nf4 in blocks of 64, which `load: nf4` with `use_double_quant: false` loads unchanged)
or of 8 bits (int8, one scale per row). Convention: A and B are each divided by sqrt(scale); peft's own initialisation
ignores the scale, so it is wrong unless that is 1.
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
    """LoRA on a base that it quantises itself, which starts by correcting the quantisation error."""

    name: ClassVar[str] = "loftq"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        starts_elsewhere="A and B correct only the largest part of the quantisation error",
        changes_base="the base's weights are quantised",
        not_on_quantised="it quantises the student itself, and needs the unquantised weights to compute the error",
        not_on_experts="it quantises and decomposes one matrix at a time",
        seedless="the weights decide",
        own_options=("loftq_bits", "loftq_iter"),
    )
    linear_only: ClassVar[bool] = True
    takes_components: ClassVar[bool] = True

    init_lora_weights: Literal["loftq"] = "loftq"  # fixed by the plugin
    loftq_bits: Literal[4, 8] = 4  # bits of each weight
    loftq_iter: int = 1  # iterations of quantising and decomposing, above 0; the paper takes 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loftq_iter < 1:
            raise ValueError(f"loftq_iter is {self.loftq_iter}, but must be above 0")

    def _check_start(self) -> None:
        """Accept `init_lora_weights`: its type has a single value."""

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student, and one that continues from an adapter."""
        if problems := super().check(recipe):
            return problems
        if recipe.student.adapter_path is None:
            return []
        what, why = "`loftq` cannot continue from an adapter", "A and B start with its own quantisation error"
        fix = "to continue from a run of `loftq`, name `lora`, and its student/ as the model"
        return [Problem(what, why, fix, ("student", "adapter_path"))]

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model))

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        self._validate_ranks(adapted)
        if model.device.type != "meta":
            with torch.no_grad():
                for _, layer in lora_layers(adapted):
                    self._quantise(layer)
        return adapted

    def _quantise(self, layer: Any) -> None:
        """Quantise the weight of a layer in place, and set its A and B."""
        weight, down, up = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        matrix = weight.T if layer.fan_in_fan_out else weight
        original, correction = matrix.float(), torch.zeros_like(matrix, dtype=torch.float32)
        for _ in range(self.loftq_iter):
            quantised = (_nf4 if self.loftq_bits == 4 else _int8)(original - correction).to(weight.dtype)
            left, values, right = torch.linalg.svd(original - quantised.float(), full_matrices=False)
            root, r = values.sqrt(), layer.r["default"]
            b, a = left[:, :r] * root[:r], root[:r, None] * right[:r]
            correction = b @ a
        matrix.copy_(quantised)
        up.copy_(b / layer.scaling["default"] ** 0.5)
        down.copy_(a / layer.scaling["default"] ** 0.5)

    @hookimpl
    def base_weights(self, model: PeftModel) -> dict[str, Tensor]:
        """Return the quantised base, by the names of the student without adapter."""
        weights = model.get_base_model().state_dict()
        names = [name for name in weights if ".lora_" not in name and ".modules_to_save." not in name]
        return {name.replace(".base_layer", "").replace(".original_module", ""): weights[name] for name in names}


def _nf4(weight: Tensor) -> Tensor:
    """Return the weight, quantised to nf4 in blocks of 64, as floats.

    It is passed as one row: some CPUs dequantise several with wrong scales where blocks do not end with rows
    (bitsandbytes 0.50).
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.reshape(1, -1), quant_type="nf4", blocksize=64)
    return dequantize_4bit(packed, state).view(weight.shape)


def _int8(weight: Tensor) -> Tensor:
    """Return the weight, quantised to 8 bits with one scale per row, as floats."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round() * scale

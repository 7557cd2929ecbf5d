"""Base of PiSSA and similar variants: A and B start as a part of each weight, and the frozen base keeps the residual.

    W = (W - scale B0 A0) + scale B0 A0,  A0 and B0 the initial A and B of the variant

The student's initial output is that of the unmodified base, up to rounding. The adapter is saved as plain LoRA of twice
the rank, which applies to the unmodified base: scale (B A - B0 A0) = scale [B, -B0] [A; A0]. Checkpoints hold only A
and B.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits, hookimpl
from neoplug_adapters.lora import LoRA
from neoplug_adapters.low_rank import write_adapter

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class ResidualBase(LoRA):
    """LoRA whose initial product is subtracted from the base. Options are LoRA's, but for `init_lora_weights`."""

    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        changes_base="the initial product of A and B is subtracted from the base",
        not_on_quantised="it changes the base's weights, and rounding would lose the change",
        not_on_experts="peft subtracts nothing from experts that are stored in one tensor",
    )
    linear_only: ClassVar[bool] = True
    takes_components: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._initial: dict[str, Tensor] = {}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        self._validate_ranks(adapted)
        self._start(adapted, batches)
        self._initial = {name: matrix.detach().clone() for name, matrix in _matrices(adapted).items()}
        return adapted

    def _start(self, adapted: Any, batches: Iterable[Batch] | None) -> None:
        """Initialise A and B and subtract them from the base; here nothing, since peft has done it."""

    @hookimpl
    def save_adapter(self, model: PeftModel, path: Path) -> None:
        """Write plain LoRA of twice the rank, in peft's own files."""
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, initial in self._initial.items():
            is_a = ".lora_A." in name
            both = [weights[name], initial if is_a else -initial]
            weights[name] = torch.cat([part.cpu().float() for part in both], dim=0 if is_a else 1)
        write_adapter(_doubled(model.peft_config["default"]), weights, path)


def _matrices(adapted: Any) -> dict[str, Tensor]:
    """Return all A and B, by peft's names."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: weight for name, weight in weights.items() if ".lora_A." in name or ".lora_B." in name}


def _doubled(config: LoraConfig) -> LoraConfig:
    """Return the configuration of plain LoRA of twice the rank and the same scale."""
    wider, alpha = deepcopy(config), sqrt(2) if config.use_rslora else 2
    wider.r, wider.lora_alpha = 2 * config.r, alpha * config.lora_alpha
    wider.rank_pattern = {name: 2 * r for name, r in config.rank_pattern.items()}
    wider.alpha_pattern = {name: alpha * value for name, value in config.alpha_pattern.items()}
    wider.init_lora_weights = True
    return wider

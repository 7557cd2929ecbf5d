"""What PiSSA and its kin share: A and B start as a part of the base's weights, and the base keeps the rest, frozen.

    W = (W - scale B0 A0) + scale B0 A0        A0 and B0 by the variant

The student starts as it was, up to rounding. It is saved as plain LoRA of twice the rank, so that it applies to the
unmodified base: scale (B A - B0 A0) = scale [B, -B0] [A; A0]. Checkpoints hold A and B alone.
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
class MovedBase(LoRA):
    """LoRA whose start is taken out of the base. Options are LoRA's; `init_lora_weights` is the variant's own."""

    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        changes_base="the part of each weight that A and B start with is taken out of the base",
        not_on_quantised="it changes the base's weights, and rounded ones would lose the change",
        not_on_experts="peft takes no part out of matrices in one stack",
    )
    linear_alone: ClassVar[bool] = True
    takes_components: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._began: dict[str, Tensor] = {}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        self._validate_ranks(adapted)
        self._start(adapted, batches)
        self._began = {name: matrix.detach().clone() for name, matrix in _matrices(adapted).items()}
        return adapted

    def _start(self, adapted: Any, batches: Iterable[Batch] | None) -> None:
        """Do nothing: peft has set A and B, and taken them out of the base."""

    @hookimpl
    def save_adapter(self, model: PeftModel, path: Path) -> None:
        """Write plain LoRA of twice the rank, in peft's own files."""
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, start in self._began.items():
            down = ".lora_A." in name
            both = [weights[name], start if down else -start]
            weights[name] = torch.cat([part.cpu().float() for part in both], dim=0 if down else 1)
        write_adapter(_doubled(model.peft_config["default"]), weights, path)


def _matrices(adapted: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: weight for name, weight in weights.items() if ".lora_A." in name or ".lora_B." in name}


def _doubled(config: LoraConfig) -> LoraConfig:
    """Return a plain configuration of twice the rank and the same scale."""
    wider, alpha = deepcopy(config), sqrt(2) if config.use_rslora else 2
    wider.r, wider.lora_alpha = 2 * config.r, alpha * config.lora_alpha
    wider.rank_pattern = {name: 2 * r for name, r in config.rank_pattern.items()}
    wider.alpha_pattern = {name: alpha * value for name, value in config.alpha_pattern.items()}
    wider.init_lora_weights = True
    return wider

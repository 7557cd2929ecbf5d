"""Prefix tuning: in each layer, trained keys and values are put before those of the text.

    attention(q, [P_k; K], [P_v; V]),  P_k and P_v [num_virtual_tokens, key-value heads x head size] of each layer

Source: Li and Liang 2021, arXiv 2101.00190; without the projection P-tuning v2, arXiv 2110.07602.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.virtual_tokens import VirtualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class PrefixTuning(VirtualTokens):
    """Trained keys and values before those of the text in each layer (peft's prefix tuning)."""

    name: ClassVar[str] = "prefix_tuning"
    config: ClassVar[str] = "PrefixTuningConfig"
    traits: ClassVar[AdapterTraits] = replace(
        VirtualTokens.traits,
        not_checkpointed="its keys and values are passed as a cache, which checkpointed layers do not read",
    )
    positive: ClassVar[tuple[str, ...]] = ("num_virtual_tokens", "encoder_hidden_size")
    sized: ClassVar[tuple[str, ...]] = ("encoder_hidden_size",)

    prefix_projection: bool = False  # an MLP computes them; the saved adapter cannot be trained further
    encoder_hidden_size: int | None = None  # hidden size of that MLP; left out: the model's
    init_weights: Literal["zero"] | None = None  # zero: keys and values start at 0; left out: at random

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("encoder_hidden_size has no effect without prefix_projection")

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        from transformers import DynamicCache

        layers = DynamicCache(config=model.config.get_text_config()).layers
        if any(hasattr(layer, "update_conv_state") for layer in layers):
            raise ValueError("its layers keep a state in addition to keys and values, for which a prefix has none")
        return super()._options(model)

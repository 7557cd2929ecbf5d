"""BEFT: biases train, and nothing else; a layer that has none gets one.

    W x + b + v,  v from 0

Source: Huang, Balashankar, Aminifar 2025, arXiv 2509.15974, who find that of the attention's the values' counts most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits, UsageError, hookimpl
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class BEFT(Tuner):
    """Peft's BEFT."""

    name: ClassVar[str] = "beft"
    config: ClassVar[str] = "BeftConfig"
    # no size: nothing but the targets
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        cannot_merge="the model has no biases at these layers, and v has no other place in it",
        seedless="v starts at 0",
    )

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        if _have_biases(adapted):
            self.traits = replace(self.traits, cannot_merge="")  # type: ignore[misc]  # of this run
        return adapted

    @hookimpl
    def merge_adapter(self, model: Any) -> PreTrainedModel:
        """Return the model with v in its biases. Raises UsageError where a target has none."""
        if not _have_biases(model):
            raise UsageError(
                f"a `{self.name}` adapter cannot be merged here\nwhy: {self.traits.cannot_merge}\nfix: use it with peft"
            )
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
        return merged


def _have_biases(model: Any) -> bool:
    layers = (layer for layer in model.modules() if hasattr(layer, "beft_bias"))
    return all(layer.get_base_layer().bias is not None for layer in layers)

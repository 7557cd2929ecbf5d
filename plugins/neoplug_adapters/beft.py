"""BEFT: only biases train; a layer without bias gets one.

    W x + b + v,  v starts at 0

Source: Huang, Balashankar, Aminifar 2025, arXiv 2509.15974: among the biases of attention, that of the values matters
most.
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
    """Trains only the biases of the targets, and adds those that are missing (peft's BEFT)."""

    name: ClassVar[str] = "beft"
    config: ClassVar[str] = "BeftConfig"
    # no `sized_by`: only the targets set the number of parameters
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        cannot_merge="the model has no biases in these layers, into which v could be merged",
        seedless="v starts at 0",
    )

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        if _have_biases(adapted):
            self.traits = replace(self.traits, cannot_merge="")  # type: ignore[misc]  # for this model
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
    """Return whether all targets have a bias in the base."""
    layers = (layer for layer in model.modules() if hasattr(layer, "beft_bias"))
    return all(layer.get_base_layer().bias is not None for layer in layers)

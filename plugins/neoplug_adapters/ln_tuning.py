"""LN tuning: the normalisation layers train, and nothing else.

    gamma, and beta where there is one, of each LayerNorm or RMSNorm

Source: Zhao et al. 2023, arXiv 2312.11420.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.targets import Names, chosen, unmatched
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVERY = "all-norms"


@dataclass(eq=False)
class LNTuning(Tuner):
    """Peft's LN tuning: a trained copy of each norm replaces the base's."""

    name: ClassVar[str] = "ln_tuning"
    config: ClassVar[str] = "LNTuningConfig"
    # no size: nothing but the targets
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="the layers start as the base's")

    target_modules: str | list[str] = EVERY  # that, name endings, or a regex of names

    def _chosen(self, model: PreTrainedModel) -> list[str]:
        return self._but(model, self.exclude_modules)

    def _but(self, model: PreTrainedModel, excluded: Names) -> list[str]:
        named = self.target_modules
        if named == EVERY:
            named = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
        return chosen(model, named, excluded, self.layers_to_transform)

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        if self.target_modules != EVERY:
            yield from unmatched(model, {"target_modules": self.target_modules}, self.layers_to_transform, {})
        if self.exclude_modules and self._but(model, self.exclude_modules) == self._but(model, None):
            yield "exclude_modules", "exclude_modules takes out none of the targets"

"""LN tuning: only the normalisation layers train.

    gamma, and beta where there is one, of each LayerNorm or RMSNorm

Source: Zhao et al. 2023, arXiv 2312.11420.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.targets import Names, target_names, unmatched
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_NORMS = "all-norms"


@dataclass(eq=False)
class LNTuning(Tuner):
    """Trains only the normalisation layers, as copies that replace the base's (peft's LN tuning)."""

    name: ClassVar[str] = "ln_tuning"
    config: ClassVar[str] = "LNTuningConfig"
    # no `sized_by`: only the targets set the number of parameters
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="the layers start as the base's")

    target_modules: str | list[str] = ALL_NORMS  # all-norms, name endings, or a regex of names

    def _target_names(self, model: PreTrainedModel) -> list[str]:
        return self._names_without(model, self.exclude_modules)

    def _names_without(self, model: PreTrainedModel, excluded: Names) -> list[str]:
        """Return the full names of the targets without the excluded ones."""
        named = self.target_modules
        if named == ALL_NORMS:
            named = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
        return target_names(model, named, excluded, self.layers_to_transform)

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        if self.target_modules != ALL_NORMS:
            yield from unmatched(model, {"target_modules": self.target_modules}, self.layers_to_transform, {})
        if self.exclude_modules and self._names_without(model, self.exclude_modules) == self._names_without(
            model, None
        ):
            yield "exclude_modules", "exclude_modules excludes none of the targets"

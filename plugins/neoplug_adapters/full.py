"""Full fine-tuning: no adapter, every weight of the student is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug import AdapterTraits, Problem, hookimpl
from neoplug_adapters.companions import key_of, quantiser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Recipe


@dataclass(eq=False)
class Full:
    """Trains every parameter of the student, head and embeddings included."""

    traits: ClassVar[AdapterTraits] = AdapterTraits(
        not_on_quantised="quantised weights are integers, which take no gradient"
    )

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student: its weights take no gradient."""
        loader = quantiser(recipe.student.load)
        if loader is None:
            return []
        return [
            Problem(
                f"`full` cannot train a student loaded by `{loader}`",
                self.traits.not_on_quantised,
                "load the student unquantised, or name `lora`, which does not change the quantised weights",
                ("adapter", key_of("full", recipe.adapter) or "full"),
            )
        ]

    @hookimpl
    def add_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model itself, with all parameters trainable."""
        return model.requires_grad_(True)

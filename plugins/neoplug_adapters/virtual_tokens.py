"""Base of adapters with virtual tokens: trained vectors are put before each document, and no layer changes.

Every document must attend to them from its first position on, so each has a separate row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits, Problem, RecipeError, UsageError, hookimpl
from neoplug_adapters.companions import key_of
from neoplug_adapters.tuner import drawing_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Recipe


@dataclass(eq=False)
class VirtualTokens:
    """An adapter of peft with virtual tokens; options are fields of peft's configuration, under the same names."""

    name: ClassVar[str]  # of the plugin
    config: ClassVar[str]  # the class of peft's configuration
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="num_virtual_tokens",
        starts_elsewhere="the text attends to the virtual tokens from the first step on",
        cannot_merge="its virtual tokens precede the text, and no weight can represent them",
    )
    positive: ClassVar[tuple[str, ...]] = ("num_virtual_tokens",)  # options that must be above 0 if given
    sized: ClassVar[tuple[str, ...]] = ()  # options whose default is the model's hidden size

    num_virtual_tokens: int = 20  # before each document, above 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.traits = AdapterTraits.of(cls)  # reads the older form, class variables

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} is {value}, but must be above 0")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse gradient checkpointing where it would lose the virtual tokens."""
        if not self.traits.not_checkpointed or not recipe.train.gradient_checkpointing:
            return []
        what = f"`{key_of(self.name, recipe.adapter) or self.name}` cannot train with gradient checkpointing"
        fix = "set it to false, or name `prompt_tuning`, which trains with it"
        return [Problem(what, self.traits.not_checkpointed, fix, ("train", "gradient_checkpointing"))]

    @hookimpl
    def add_adapter(self, model: PreTrainedModel, rng: torch.Generator) -> torch.nn.Module:
        """Return the PeftModel, initialised from `rng`; the state of torch's global generators does not change.

        Raises RecipeError where peft does not support the model.
        """
        from neoplug import quiet_peft

        try:
            with drawing_from(rng), quiet_peft():
                return self._adapt(model)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            what, fix = f"peft cannot do {self.name} on this model", "name `lora`, which changes layers instead"
            raise RecipeError([Problem(what, str(error), fix, ("adapter", self.name))]) from error

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raise UsageError: virtual tokens cannot be merged."""
        why = self.traits.cannot_merge
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {why}\nfix: use it with peft")

    def _adapt(self, model: PreTrainedModel) -> torch.nn.Module:
        """Return the PeftModel; a forward pass on two tokens checks that the model accepts the virtual tokens."""
        import peft

        from neoplug import rename_cache_argument

        config = getattr(peft, self.config)(task_type="CAUSAL_LM", **self._options(model))
        if model.device.type == "meta":
            with torch.device("meta"):
                return peft.get_peft_model(model, config)
        adapted = rename_cache_argument(peft.get_peft_model(model, config))
        text = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        with torch.no_grad():
            adapted(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False)
        return adapted

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the arguments of peft's configuration, with omitted sizes fitted to the model."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        width = model.config.get_text_config().hidden_size
        return options | {name: width for name in self.sized if options[name] is None}

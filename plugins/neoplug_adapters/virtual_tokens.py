"""Base of adapters with virtual tokens: trained columns are put before each row, and no layer changes.

Each document must attend to them from its first position on, so each has a separate row.
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
    """A prompt method of peft's: its options are fields of peft's configuration, by their own names."""

    name: ClassVar[str]  # the plugin's own
    config: ClassVar[str]  # the class of peft's configuration
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="num_virtual_tokens",
        starts_elsewhere="the text sees the virtual tokens from the first step on",
        cannot_merge="its virtual tokens stand before the text, so that no weight holds them",
    )
    positive: ClassVar[tuple[str, ...]] = ("num_virtual_tokens",)  # options that must be above 0 where they are given
    sized: ClassVar[tuple[str, ...]] = ()  # options that are the model's hidden size where they are left out

    num_virtual_tokens: int = 20  # before each document, above 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.traits = AdapterTraits.of(cls)  # for a class that states them in the older form

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
        """Return the PeftModel. Same seed, same start; torch's own generators are left as they were.

        Raises RecipeError where peft cannot put virtual tokens before what the model reads.
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
        """Refuse it."""
        why = self.traits.cannot_merge
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {why}\nfix: use it with peft")

    def _adapt(self, model: PreTrainedModel) -> torch.nn.Module:
        """Return the model behind its virtual tokens; a short text proves that it can read them."""
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

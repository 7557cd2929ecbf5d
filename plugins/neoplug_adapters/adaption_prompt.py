"""LLaMA-Adapter: in each layer every token also attends to trained prompts, scaled by a trained gate.

    attention(x) + gate softmax(q K_P) V_P,  K_P and V_P the layer's keys and values of P;  gate starts at 0
    P [adapter_len, hidden size], initialised from a normal distribution

Source: Zhang et al. 2023, arXiv 2303.16199.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from neoplug import AdapterTraits, Problem, RecipeError, UsageError, hookimpl
from neoplug_adapters.tuner import drawing_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Recipe


@dataclass(eq=False)
class AdaptionPrompt:
    """Gated attention to trained prompts in each layer (peft's adaption prompt), for Llama, Mistral and GPT-2."""

    name: ClassVar[str] = "adaption_prompt"
    config: ClassVar[str] = "AdaptionPromptConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="adapter_len",
        cannot_merge="it adds a gated attention to that of each layer, which no weight can represent",
    )

    adapter_len: int = 10  # prompts per layer, above 0
    adapter_layers: int | None = None  # number of layers with prompts, counted from the last; left out: all

    def __post_init__(self) -> None:
        for name in ("adapter_len", "adapter_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be above 0")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Accept any recipe: whether the family is supported is known only from the model."""
        return []

    @hookimpl
    def add_adapter(self, model: PreTrainedModel, rng: torch.Generator) -> torch.nn.Module:
        """Return the PeftModel, initialised from `rng`. Raises RecipeError for an unsupported family."""
        from peft import AdaptionPromptConfig, get_peft_model

        from neoplug import quiet_peft

        self._validate_heads(model)
        layers = self.adapter_layers or model.config.get_text_config().num_hidden_layers
        config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=self.adapter_len, adapter_layers=layers)
        try:
            with drawing_from(rng), quiet_peft():
                return get_peft_model(model, config)
        except ValueError as error:
            raise RecipeError([self._unsupported(str(error))]) from error

    def _validate_heads(self, model: PreTrainedModel) -> None:
        """Refuse a model whose head size is not hidden size / heads, as peft assumes."""
        config = model.config.get_text_config()
        heads, width = config.num_attention_heads, config.hidden_size
        size = getattr(config, "head_dim", None) or width // heads
        if size * heads != width:
            why = f"it has {heads} heads of size {size}, but peft computes {width} / {heads}"
            raise RecipeError([self._unsupported(why)])

    def _unsupported(self, why: str) -> Problem:
        what, fix = f"peft cannot do {self.name} on this model", "name `prefix_tuning`, which supports more models"
        path = ("adapter", self.name, "adapter_layers") if self.adapter_layers else ("adapter", self.name)
        return Problem(what, why, fix, path)

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raise UsageError: it cannot be merged."""
        why = self.traits.cannot_merge
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {why}\nfix: use it with peft")

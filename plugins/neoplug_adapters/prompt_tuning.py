"""Prompt tuning: trained embeddings are put before those of the text.

    [P; E(text)],  P [num_virtual_tokens, hidden]

Source: Lester et al. 2021, arXiv 2104.08691, who find initialisation with embeddings of the
vocabulary best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neoplug_adapters.virtual_tokens import VirtualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class PromptTuning(VirtualTokens):
    """Trained embeddings before those of the text (peft's prompt tuning)."""

    name: ClassVar[str] = "prompt_tuning"
    config: ClassVar[str] = "PromptTuningConfig"

    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"  # how the tokens are initialised
    prompt_tuning_init_text: str | None = None  # for TEXT: cut, or repeated, to num_virtual_tokens
    tokenizer_name_or_path: str | None = None  # for TEXT; left out: the student's

    def __post_init__(self) -> None:
        super().__post_init__()
        from_text = self.prompt_tuning_init == "TEXT"
        if from_text and not self.prompt_tuning_init_text:
            raise ValueError("prompt_tuning_init_text is missing, but prompt_tuning_init is TEXT")
        for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
            if getattr(self, name) is not None and not from_text:
                raise ValueError(f"{name} has no effect, since prompt_tuning_init is {self.prompt_tuning_init}")

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        options = super()._options(model)
        if self.prompt_tuning_init == "TEXT" and self.tokenizer_name_or_path is None:
            options["tokenizer_name_or_path"] = model.name_or_path
        return options

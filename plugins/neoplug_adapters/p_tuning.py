"""P-tuning: trained embeddings, computed by a small network, are put before those of the text.

    [f(P); E(text)],  P [num_virtual_tokens, hidden], f an MLP of three layers, or an LSTM followed by an MLP

The saved adapter holds f(P), so it cannot be trained further; an interrupted run can be resumed.
Source: Liu et al. 2021, arXiv 2103.10385.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.virtual_tokens import VirtualTokens

LAYERS = 2  # default of encoder_num_layers, which peft's MLP ignores


@dataclass(eq=False)
class PTuning(VirtualTokens):
    """Trained embeddings before the text, computed by a small MLP or LSTM (peft's p-tuning)."""

    name: ClassVar[str] = "p_tuning"
    config: ClassVar[str] = "PromptEncoderConfig"
    traits: ClassVar[AdapterTraits] = replace(VirtualTokens.traits, sized_by="encoder_hidden_size")
    positive: ClassVar[tuple[str, ...]] = ("num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers")
    sized: ClassVar[tuple[str, ...]] = ("encoder_hidden_size",)

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: int | None = None  # hidden size of the network; left out: the model's
    encoder_num_layers: int = LAYERS  # of the LSTM, above 0
    encoder_dropout: float = 0.0  # between the LSTM's layers, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.encoder_dropout < 1:
            raise ValueError(f"encoder_dropout is {self.encoder_dropout}, but must lie in [0, 1)")
        mlp = self.encoder_reparameterization_type == "MLP"
        if mlp and self.encoder_num_layers != LAYERS:
            raise ValueError("encoder_num_layers is for encoder_reparameterization_type LSTM: peft's MLP ignores it")
        if self.encoder_dropout and (mlp or self.encoder_num_layers == 1):
            raise ValueError("encoder_dropout is for an LSTM of 2 layers or more: peft ignores it elsewhere")

"""Ladder side-tuning: a narrow side network reads the states of the frozen layers; no gradient passes through these.

    s_0 = D_0 n(h_0),  s_i = g_i(m_i D_i n(h_i) + (1 - m_i) s_{i-1}),  m_i = sigmoid(a_i / T)
    g_i(x) = x + B_i silu(A_i n(x));  the head reads h_N + U s_N

h_0 are the embeddings, h_i the states after layer i, of size d; s_i has size d / r, and the inner size of g_i is that
of the layer's MLP / r. n divides by the root mean square; U and a_i start at 0, so that the student starts at its base.
Source: Sung, Cho, Bansal 2022, arXiv 2206.06522, section 3.2 (ladders with gates). There g_i are transformer blocks;
here a token's side network reads the other tokens only through h_i, so that it needs neither masks nor a cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from neoplug import AdapterTraits, Problem, RecipeError, UsageError, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIONS, WEIGHTS = "ladder.json", "ladder.safetensors"


class Block(nn.Module):
    """The side network's block for one layer: gate, down-projection and g_i."""

    def __init__(self, size: int, width: int, inner: int, temperature: float, rng: torch.Generator) -> None:
        super().__init__()
        self.down, self.gate = _matrix(width, size, rng), nn.Parameter(torch.zeros(1))
        self.expand, self.contract = _matrix(inner, width, rng), _matrix(width, inner, rng)
        self.temperature = temperature

    def forward(self, side: Tensor, states: Tensor) -> Tensor:
        """[B, L, d / r], [B, L, d] -> [B, L, d / r]."""
        share = torch.sigmoid(self.gate / self.temperature)
        mixed = share * functional.linear(states, self.down) + (1 - share) * side
        inner = functional.silu(functional.linear(_normalised(mixed), self.expand))
        return mixed + functional.linear(inner, self.contract)


class Ladder(nn.Module):
    """The side network of a model; its hooks on the model's body add its result to the body's."""

    def __init__(
        self, size: int, inner: int, layers: int, reduction_factor: int, gate_temperature: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        width, inner = (max(1, each // reduction_factor) for each in (size, inner))
        self.first = _matrix(width, size, rng)
        self.blocks = nn.ModuleList(Block(size, width, inner, gate_temperature, rng) for _ in range(layers))
        self.up = nn.Parameter(torch.zeros(size, width))

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        """Return U s_N [B, L, d] for h_0 ... h_N, each [B, L, d]; they get no gradient."""
        first, *rest = (_normalised(each.detach().float()) for each in states)
        side = functional.linear(first, self.first)
        for block, each in zip(self.blocks, rest, strict=True):
            side = block(side, each)
        return functional.linear(side, self.up)

    def request_states(
        self, body: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Let the body return the states of all layers: a pre-hook."""
        return positional, {**named, "output_hidden_states": True}

    def add_side(self, body: nn.Module, positional: tuple[Any, ...], output: Any) -> Any:
        """Add U s_N to the body's last states: a hook."""
        side = self(output.hidden_states)
        output["last_hidden_state"] = output.last_hidden_state + side.to(output.last_hidden_state.dtype)
        return output


@dataclass(eq=False)
class LadderSideTuning:
    """A side network on the states of all layers (ladder side-tuning), for students of any family."""

    name: ClassVar[str] = "ladder"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="reduction_factor",
        cannot_merge="it adds a network next to the layers, which no weight can represent",
        own_options=("reduction_factor", "gate_temperature"),
    )

    reduction_factor: int = 8  # r: the side network is narrower by this factor, 1 or more
    gate_temperature: float = 0.1  # T of the gates, above 0

    def __post_init__(self) -> None:
        if self.reduction_factor < 1:
            raise ValueError(f"reduction_factor is {self.reduction_factor}, but must be at least 1")
        if not 0 < self.gate_temperature < float("inf"):
            raise ValueError(f"gate_temperature is {self.gate_temperature}, but must be above 0")

    @hookimpl
    def add_adapter(self, model: PreTrainedModel, rng: torch.Generator) -> torch.nn.Module:
        """Return the model itself with the side network as `model.ladder`, initialised from `rng`."""
        body, config = model.get_decoder(), model.config.get_text_config()
        if body is model:
            what, why = f"`{self.name}` cannot find the layers of this model", "its class does not name its body"
            raise RecipeError([Problem(what, why, "name `lora`, which changes layers", ("adapter", self.name))])
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        sizes = (config.hidden_size, inner, config.num_hidden_layers)
        ladder = Ladder(*sizes, self.reduction_factor, self.gate_temperature, rng).to(model.device)
        body.register_forward_pre_hook(ladder.request_states, with_kwargs=True)
        body.register_forward_hook(ladder.add_side)
        model.add_module("ladder", ladder)
        return model

    @hookimpl
    def save_adapter(self, model: PreTrainedModel, path: Path) -> None:
        """Write the side network's weights and the options."""
        from safetensors.torch import save_file

        weights = {name: weight.contiguous() for name, weight in model.ladder.state_dict().items()}
        save_file(weights, path / WEIGHTS, {"format": "pt"})
        options = {"reduction_factor": self.reduction_factor, "gate_temperature": self.gate_temperature}
        (path / OPTIONS).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")

    @hookimpl
    def load_adapter(self, model: PreTrainedModel, path: Path) -> torch.nn.Module:
        """Return the model with the side network that `save_adapter` wrote."""
        from safetensors.torch import load_file

        stored = replace(self, **json.loads((path / OPTIONS).read_text(encoding="utf-8")))
        adapted: Any = stored.add_adapter(model, torch.Generator())
        adapted.ladder.load_state_dict(load_file(path / WEIGHTS, device=str(model.device)))
        return model

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raise UsageError: it cannot be merged."""
        fix = f"load it on its base with `{self.name}`'s `load_adapter`"
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {self.traits.cannot_merge}\nfix: {fix}")


def _matrix(rows: int, columns: int, rng: torch.Generator) -> nn.Parameter:
    """Return a trained matrix [rows, columns] that keeps the size of its inputs."""
    return nn.Parameter(torch.randn(rows, columns, generator=rng) / sqrt(columns))


def _normalised(states: Tensor) -> Tensor:
    """Return the states divided by their root mean square over the last dimension."""
    return functional.rms_norm(states, states.shape[-1:])

"""Maps the axes of a decoder's parameters to dimensions that can be pruned, and removes indices from these.

Dimensions: query (query heads x head_dim), key (key-value heads x head_dim), channel (of an MLP), hidden, token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm"
)  # fmt: skip
DIMENSIONS: dict[str, tuple[str, ...]] = {  # by the end of a parameter's name
    "embed_tokens.weight": ("token", "hidden"),
    "lm_head.weight": ("token", "hidden"),
    "q_proj.weight": ("query", "hidden"),
    "q_proj.bias": ("query",),
    "k_proj.weight": ("key", "hidden"),
    "k_proj.bias": ("key",),
    "v_proj.weight": ("key", "hidden"),
    "v_proj.bias": ("key",),
    "o_proj.weight": ("hidden", "query"),
    "o_proj.bias": ("hidden",),
    "gate_proj.weight": ("channel", "hidden"),
    "gate_proj.bias": ("channel",),
    "up_proj.weight": ("channel", "hidden"),
    "up_proj.bias": ("channel",),
    "down_proj.weight": ("hidden", "channel"),
    "down_proj.bias": ("hidden",),
    **{f"{name}.weight": ("hidden",) for name in NORMS},
}
Kept = Mapping[str, Mapping[str, Tensor]]  # path of an attention or MLP, "" for the model -> dimension -> indices


@dataclass(frozen=True)
class Width:
    """The sizes of a decoder, by their names in its configuration."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    hidden_size: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Width:
        """Return the sizes of a model. Raises AttributeError for one that its configuration lacks."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        others = (config.intermediate_size, config.hidden_size)
        return cls(config.num_attention_heads, config.num_key_value_heads, head_dim, *others)

    def length(self, dimension: str) -> int | None:
        """Return the length of a dimension; None for `token`, which is not pruned."""
        return {
            "query": self.num_attention_heads * self.head_dim,
            "key": self.num_key_value_heads * self.head_dim,
            "channel": self.intermediate_size,
            "hidden": self.hidden_size,
        }.get(dimension)


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules with the supported projections, by path."""
    return dict(_having(model, ATTENTION))


def mlps(model: nn.Module) -> dict[str, nn.Module]:
    """Return the gated MLPs with the supported projections, by path."""
    return dict(_having(model, MLP))


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms over hidden channels, by path."""
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in NORMS}


def _having(model: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules, with their paths, that have linear layers of all these names."""
    for name, module in model.named_modules():
        if all(type(getattr(module, part, None)) is nn.Linear for part in parts):
            yield name, module


def dimensions(model: nn.Module, width: Width) -> dict[str, tuple[str | None, ...]]:
    """Return the dimension of each axis of each parameter; None where it is unknown, or its length differs."""
    known, found = {**attentions(model), **mlps(model)}, {}
    for name, parameter in model.named_parameters():
        path, end = name.rsplit(".", 2)[0], ".".join(name.split(".")[-2:])
        meaning = DIMENSIONS.get(end, ("token",) * parameter.ndim)
        found[name] = tuple(
            dimension if size == width.length(dimension) and (dimension == "hidden" or path in known) else None
            for dimension, size in zip(meaning, parameter.shape, strict=True)
        )
    return found


def mismatch(model: PreTrainedModel, target: PreTrainedModel, before: Width, after: Width) -> str:
    """Return why the pruned model would differ from `target`, which its new configuration describes, or "".

    Compared are the shapes of parameters and buffers, and scale factors, such as that of Gemma's embeddings.
    """
    axes, planned = dimensions(model, before), {}
    for name, parameter in model.named_parameters():
        lengths = zip(axes[name], parameter.shape, strict=True)
        planned[name] = tuple(after.length(dimension) if dimension else size for dimension, size in lengths)
    planned |= {name: tuple(buffer.shape) for name, buffer in model.named_buffers()}
    present = {name: tuple(tensor.shape) for name, tensor in (*target.named_parameters(), *target.named_buffers())}
    if odd := sorted({name for name, _ in planned.items() ^ present.items()}):
        unknown = [name for name in odd if not any(axes.get(name, ()))]
        return f"`{(unknown or odd)[0]}` would not match the smaller configuration"
    for dimension in ("query", "key", "channel", "hidden"):
        if before.length(dimension) != after.length(dimension) and not any(dimension in d for d in axes.values()):
            return f"nothing in it is known to have {before.length(dimension)} channels of that kind"
    for name, module in model.named_modules():
        theirs = vars(target.get_submodule(name))
        for attribute, value in vars(module).items():
            if isinstance(value, float) and theirs.get(attribute, value) != value:
                return f"`{name}.{attribute}` would change with the size"
    return ""


def cut(model: PreTrainedModel, target: PreTrainedModel, before: Width, kept: Kept) -> None:
    """Keep the indices in `kept` of each parameter, and copy each module's sizes from its counterpart in `target`."""
    axes = dimensions(model, before)
    for name, parameter in model.named_parameters():
        indices = {**kept.get("", {}), **kept.get(name.rsplit(".", 2)[0], {})}
        for axis, dimension in enumerate(axes[name]):
            if dimension in indices:
                parameter.data = parameter.data.index_select(axis, indices[dimension].to(parameter.device))
    for name, module in model.named_modules():
        for attribute, value in vars(target.get_submodule(name)).items():
            if type(value) in (int, tuple):
                setattr(module, attribute, value)

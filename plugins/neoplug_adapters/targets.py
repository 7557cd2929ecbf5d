"""The modules of a model that an adapter's options name, and names that match none: peft ignores most of these."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from neoplug import adaptable_weights, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Names = str | list[str] | None


def unmatched(
    model: torch.nn.Module,
    targets: Mapping[str, Names],
    layers: int | list[int] | None,
    patterns: Mapping[str, Iterable[str]],
) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong with it) for each name, regex or layer number that matches nothing in the model.

    targets   option -> names, name endings or a regex of whole names, as peft reads `target_modules`
    layers    peft's `layers_to_transform`
    patterns  option -> regexes of name endings, as peft reads the keys of `rank_pattern`
    """
    layer_names = [name for weight in adaptable_weights(model) for name in weight.names]
    names = [*(name for name, _ in model.named_modules() if name), *layer_names]
    for option, wanted in targets.items():
        for target in _missing(wanted, names if option == "modules_to_save" else layer_names):
            yield option, _without_layer(target, names, layer_names, is_regex=isinstance(wanted, str))
    for option, keys in patterns.items():
        for key in keys:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in layer_names):
                what = _without_layer(key, names, layer_names, is_regex=False)
                yield option, f"{what} (a key is a regex of the end of a whole name, as `layers.0.*`)"
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if count is not None and not 0 <= layer < count:
            yield "layers_to_transform", f"there is no layer {layer}: the model has {count}, counted from 0"


def target_names(
    model: PreTrainedModel, targets: str | list[str], excluded: Names, layers: int | list[int] | None
) -> list[str]:
    """Return the names of the modules to adapt, in the model's order; all-linear does not include the head."""
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    if targets == "all-linear":
        head = model.get_output_embeddings()
        matching = [name for name in names if _is_linear(module := model.get_submodule(name)) and module is not head]
    else:
        matching = [name for name in names if _matches(name, targets)]
    wanted = {layers} if isinstance(layers, int) else set(layers or ())
    return [
        name for name in matching
        if not (excluded and _matches(name, excluded)) and (not wanted or _layer_of(name) in wanted)
    ]  # fmt: skip


def linear_sizes(model: PreTrainedModel, names: list[str]) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of those of the modules that are linear layers."""
    modules = [model.get_submodule(name) for name in names]
    return [
        (module.in_features, module.out_features) if hasattr(module, "in_features") else (module.nx, module.nf)
        for module in modules if _is_linear(module)
    ]  # fmt: skip


def with_endings(names: Names, endings: list[str]) -> Names:
    """Return the names, a list or a regex, extended by name endings."""
    if isinstance(names, str):
        return "|".join([f"(?:{names})", *(rf".*\.{re.escape(ending)}" for ending in endings)])
    return [*(names or []), *endings]


def validate_regexes(options: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError for the first string that is not a valid regular expression. options: {name: strings}."""
    for name, regexes in options.items():
        for regex in regexes:
            try:
                re.compile(regex)
            except re.error as error:
                raise ValueError(f"{name} has `{regex}`, which is no regular expression: {error}") from error


def _is_linear(module: torch.nn.Module) -> bool:
    """Return whether a module is a linear layer: torch's, bitsandbytes' (which inherit torch's) or GPT-2's Conv1D."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _matches(name: str, wanted: str | list[str]) -> bool:
    """Return whether a module's name matches a regex as a whole, or ends with one of a list of names."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(f".{name}".endswith(f".{ending}") for ending in wanted)


def _layer_of(name: str) -> int | None:
    """Return the number of the layer in a module's name, None without one."""
    found = re.match(r".*\.[^.]*\.(\d+)\.", name)
    return int(found[1]) if found else None


def linear_endings(model: torch.nn.Module) -> list[str]:
    """Return the last parts of the names of the linear layers in the model's layers, for messages."""
    weights = [weight for weight in adaptable_weights(model) if weight.is_linear and weight.layer is not None]
    return sorted({weight.names[0].rpartition(".")[2] for weight in weights if not weight.is_stacked})


def uncalled_layers(model: torch.nn.Module) -> list[str]:
    """Return name endings of linear layers whose weights a model reads without calling them, as mamba's fused kernels.

    An adapter on such a layer would have no effect, without a warning; peft refuses some, by the model's type.
    """
    mamba = ("conv1d", "D", "out_proj")  # attributes that such a mixer has, but no other linear attention
    mixers = {name.rpartition(".")[2] for name, part in model.named_modules() if all(hasattr(part, at) for at in mamba)}
    return sorted(f"{mixer}.out_proj" for mixer in mixers)


def single_output_layers(model: torch.nn.Module) -> list[str]:
    """Return name endings of linear layers with one output, as the gate of Qwen2-MoE's shared expert."""
    names = (name for name, module in model.named_modules() if getattr(module, "out_features", None) == 1)
    return sorted({".".join(name.split(".")[-2:]) for name in names})


def unadapted_expert_weights(model: torch.nn.Module, target_parameters: Collection[str] | None) -> int:
    """Return the number of expert weights without adapter: those in one 3-dimensional tensor, which is no linear layer.

    target_parameters   expert tensors that peft adapts, as it does by default in the families of Mixtral and Qwen
    """
    if target_parameters:
        return 0
    modules = [module for module in model.modules() if not isinstance(module, torch.nn.modules.conv._ConvNd)]
    weights = [w for module in modules for w in module.parameters(recurse=False) if not w.requires_grad]  # of the base
    return sum(weight.numel() for weight in weights if weight.ndim == 3 and min(weight.shape) > 1)


def _missing(wanted: Names, names: list[str]) -> list[str]:
    """Return those of the wanted names, or the regex, that match no module."""
    if wanted is None:
        return []
    if isinstance(wanted, str):
        if wanted.lower() == "all-linear":
            return []
        return [] if any(re.fullmatch(wanted, name) for name in names) else [wanted]
    return [target for target in wanted if not any(_matches(name, [target]) for name in names)]


def _without_layer(target: str, names: list[str], layer_names: list[str], is_regex: bool) -> str:
    """Return what is wrong with a name or regex that matches no layer."""
    what = f"`{target}` matches no module of the model"
    if is_regex and any(_matches(name, [target]) for name in names):
        return f"{what}: a text is a regex of the whole name; [{target}] is a list of name endings"
    inside = {name.rpartition(".")[2] for name in layer_names if f".{target}." in f".{name}"}
    if inside:
        return f"`{target}` names a module that holds layers, and no layer; name the layers in it: {_listed(inside)}"
    return what + _suggestion(target, layer_names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _suggestion(name: str, names: list[str]) -> str:
    """Return the end of an error message: the most similar last part of a layer's name, or all of them."""
    parts = sorted({part for full in names if not (part := full.rpartition(".")[2]).isdigit()})
    return did_you_mean(name, parts) or f"; its modules are named {', '.join(parts)}"

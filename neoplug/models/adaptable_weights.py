"""The weights of a model that an adapter may change, by the names with which the options of peft mean them.

Transformers stacks the weights of experts in one tensor that belongs to no layer. Options mean such a tensor by its own
name, by the name of the module that has it, or by the names of the projections that it holds in stored files:

    model.layers.1.mlp.experts.gate_up_proj    experts, gate_up_proj, and gate_proj and up_proj of the stored files
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

CONVOLUTION = nn.modules.conv._ConvNd  # its weight has three dimensions or more, but holds no experts


@dataclass(frozen=True)
class AdaptableWeight:
    """A weight of a model, and the names by which an option may mean it.

    parameter    its full name, as `model.layers.0.self_attn.q_proj.weight`
    names        the full names for options: of its layer; for stacked experts also of what is stacked
    layer        the number of its layer; None outside the layers
    is_linear    whether it belongs to a linear layer, or holds the experts' linear layers
    is_router    whether it is a matrix of a module that is neither linear layer nor embedding, as a router of experts
    is_stacked   whether it holds the weights of all experts of a layer
    projections  names of the projections that it holds for each expert, as (gate_proj, up_proj); empty where unknown
    """

    parameter: str
    names: tuple[str, ...]
    layer: int | None
    is_linear: bool
    is_router: bool = False
    is_stacked: bool = False
    projections: tuple[str, ...] = ()

    def is_named(self, wanted: str | Iterable[str]) -> bool:
        """Return whether a regex matches one of its names as a whole, or one ends with one of the names in a list."""
        if isinstance(wanted, str):
            return any(re.fullmatch(wanted, name) for name in self.names)
        return any(f".{name}".endswith(f".{ending}") for ending in wanted for name in self.names)

    def has_pattern(self, key: str) -> bool:
        """Return whether a key of peft's `rank_pattern` means it: a regex of the end of a name."""
        return any(re.match(rf"(.*\.)?({key})$", name) for name in self.names)


def adaptable_weights(model: nn.Module) -> list[AdaptableWeight]:
    """Return the weights of a base model that an adapter may change, in the model's order.

    model  without an adapter; it may be on the meta device
    """
    stored = _stored_projections(model)
    return [weight for name, module in model.named_modules() if name for weight in _of_module(name, module, stored)]


def _of_module(name: str, module: nn.Module, stored: dict[str, tuple[str, ...]]) -> Iterator[AdaptableWeight]:
    parameters = dict(module.named_parameters(recurse=False))
    for own, parameter in parameters.items():
        if parameter.ndim == 3 and min(parameter.shape) > 1 and not isinstance(module, CONVOLUTION):
            full = f"{name}.{own}"
            projections = next((held for end, held in stored.items() if f".{full}".endswith(f".{end}")), ())
            names = (full, name, *(f"{name}.{held}" for held in projections))
            yield AdaptableWeight(full, names, layer_of(full), True, is_stacked=True, projections=projections)
    if "weight" in parameters and not list(module.children()):
        linear = is_linear(module)
        is_router = parameters["weight"].ndim == 2 and not linear and not isinstance(module, nn.Embedding)
        yield AdaptableWeight(f"{name}.weight", (name,), layer_of(f"{name}."), linear, is_router)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer: torch's, bitsandbytes' (which inherit torch's) or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def layer_of(name: str) -> int | None:
    """Return the number of the layer in a weight's name: the first number in it; None without one."""
    found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return int(found[1]) if found else None


def _stored_projections(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return what transformers stacks when it loads a file: end of a parameter's name -> projections of each expert."""
    if not hasattr(getattr(model, "config", None), "model_type"):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    found: dict[str, tuple[str, ...]] = {}
    for change in get_model_conversion_mapping(model) or ():
        if not isinstance(change, WeightConverter) or len(change.target_patterns) != 1:
            continue
        if any(isinstance(operation, MergeModulelist) for operation in change.operations):
            sources = (source.removesuffix(".weight") for source in change.source_patterns)
            held = tuple(source.rpartition(".")[2] for source in sources)
            found[change.target_patterns[0].lstrip(".")] = held
    return found

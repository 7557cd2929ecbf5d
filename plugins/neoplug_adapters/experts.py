"""Options of LoRA in families of models that store experts in one tensor, and whose names peft converts.

In these families peft takes each target that ends in `gate_proj`, `up_proj`, `down_proj` or `gate` (in Mixtral `w1`,
`w2`, `w3`) for the stacked experts or the router of every layer, also where a dense layer or a shared expert is meant.
Such weights are therefore named as `target_parameters`, by their whole names: peft trains and stores the same A and B.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoplug import AdaptableWeight, adaptable_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug_adapters.targets import Names


@dataclass(frozen=True)
class Targets:
    """The selected weights of such a model, in the model's order.

    modules     layers that peft finds by their names
    parameters  all others: stacked experts, and layers whose names peft takes for these
    """

    modules: list[AdaptableWeight]
    parameters: list[AdaptableWeight]

    @property
    def module_names(self) -> list[str]:
        """The full names of the layers that peft finds by their names."""
        return [weight.names[0] for weight in self.modules]

    @property
    def experts(self) -> list[AdaptableWeight]:
        """The stacked experts."""
        return [weight for weight in self.parameters if weight.is_stacked]


def converted_names(model: PreTrainedModel) -> set[str]:
    """Return the last parts of names of weights that peft takes for experts or their router; empty in most families."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for name in {name.rpartition(".")[2] for weight in adaptable_weights(model) for name in weight.names}:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several projections that are stored in one tensor
            found.add(name)
        else:
            found |= {name} - set(config.target_modules or ())
    return found


def select(
    model: PreTrainedModel, targets: str | list[str], excluded: Names, layers: int | list[int] | None, saved: Names
) -> Targets:
    """Return the selected weights; with all-linear also the experts and their routers, as peft adapts them.

    saved  names of modules that are trained fully, and so take no adapter
    """
    converted, head = converted_names(model), model.get_output_embeddings()
    wanted = {layers} if isinstance(layers, int) else set(layers or ())
    found = Targets([], [])
    for weight in adaptable_weights(model):
        name, module = weight.names[0], weight.parameter.rpartition(".")[0]
        is_converted = weight.is_stacked or name.rpartition(".")[2] in converted
        if targets == "all-linear":
            is_target = (weight.is_linear or is_converted) and model.get_submodule(module) is not head
            is_target = is_target and (not weight.is_stacked or bool(converted))
        else:
            is_target = weight.is_named(targets)
        unselected = (excluded and weight.is_named(excluded)) or (saved and weight.is_named(saved))
        if not is_target or unselected or (wanted and weight.layer not in wanted):
            continue
        if is_converted and model.get_parameter(weight.parameter).is_floating_point():
            found.parameters.append(weight)
        elif not is_converted:
            found.modules.append(weight)
    return found


def unpaired_projection(targets: str | list[str], experts: Iterable[AdaptableWeight]) -> tuple[str, str] | None:
    """Return (a named projection, one stored in the same tensor that is not named); None where there is none."""
    for weight in experts:
        full, container, *projections = weight.names
        whole = AdaptableWeight(full, (full, container), weight.layer, is_linear=True)
        if targets == "all-linear" or whole.is_named(targets):
            continue
        each = [AdaptableWeight(name, (name,), weight.layer, is_linear=True) for name in projections]
        missing = [part for part in each if not part.is_named(targets)]
        if missing and len(missing) < len(each):
            named = next(part for part in each if part not in missing)
            return named.parameter.rpartition(".")[2], missing[0].parameter.rpartition(".")[2]
    return None


def parameter_patterns(parameters: Iterable[AdaptableWeight], pattern: dict[str, Any], default: Any) -> dict[str, Any]:
    """Return a rank_pattern or alpha_pattern for target_parameters: a regex of each whole name -> its value.

    A tensor with several projections of each expert has the sum of their ranks, as peft converts them, unless a key
    names the tensor itself.

    pattern  of the options; `default` is the value of weights that it does not name
    """
    found = {}
    for weight in parameters:
        key = next((key for key in pattern if weight.has_pattern(key)), None)
        value = default if key is None else pattern[key]
        names_tensor = key is not None and re.match(rf"(.*\.)?({key})$", weight.parameter)
        value *= 1 if names_tensor else max(1, len(weight.projections))
        if value != default or key is not None:
            found[re.escape(weight.parameter)] = value
    return found


def pattern_values(weight: AdaptableWeight, pattern: dict[str, Any]) -> list[Any]:
    """Return the values that a rank_pattern or alpha_pattern has for the projections in a tensor of experts.

    Empty where a key names the tensor itself; the value is None for a projection that no key names.
    """
    full, _, *projections = weight.names
    if any(re.match(rf"(.*\.)?({key})$", full) for key in pattern):
        return []
    ends = [name for name in projections if name != full]
    return [next((pattern[key] for key in pattern if re.match(rf"(.*\.)?({key})$", name)), None) for name in ends]

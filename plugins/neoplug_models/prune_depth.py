"""Depth pruning: the student keeps some of the decoder's layers. Nothing is trained here: the distillation does that.

    even             layer round(i (n - 1) / (k - 1)) of n for i = 0 .. k - 1, so the first and the last are always kept
    block_influence  the layers that change their input's direction most: 1 - mean cos(in, out) (ShortGPT, 2403.03853)
    greedy           layers are removed one by one, each time the one whose removal changes the model's predictions
                     least (as in SLEB, 2402.09025, here by forward KL): about (n^2 - k^2) / 2 passes over the text

The last two are measured on the recipe's training data, in its order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from neoplug import Problem, RecipeError, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from neoplug import Batch

log = logging.getLogger("neoplug")  # the run's log has its handlers there

CALIBRATION_TOKENS = {"block_influence": 4096, "greedy": 512}
NUMBERS = ("layer_idx", "layer_id", "layer_index")  # attributes that hold the number of the layer


@dataclass(eq=False)
class PruneDepth:
    """Keep some of the layers: `layers` names them, or `num_hidden_layers` says how many, and `importance` which.

    num_hidden_layers   how many to keep, at least 2
    layers              which to keep, numbered from 0, ascending
    importance          even: evenly spaced layers; block_influence or greedy: by measured importance
    calibration_tokens  tokens to measure on; by default 4,096 for block_influence and 512 for greedy, which keeps a
                        float32 for each of them and each entry of the vocabulary
    """

    num_hidden_layers: int | None = None
    layers: list[int] | None = None
    importance: Literal["even", "block_influence", "greedy"] = "even"
    calibration_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.num_hidden_layers is None) == (self.layers is None):
            raise ValueError("give one of `num_hidden_layers` (how many) and `layers` (by number)")
        if self.num_hidden_layers is not None and self.num_hidden_layers < 2:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}, but at least 2 must stay")
        if self.layers is not None and self.importance != "even":
            raise ValueError(f"importance is {self.importance}, which chooses layers, but `layers` names them already")
        if self.calibration_tokens is not None and self.importance == "even":
            raise ValueError("calibration_tokens is given, but importance is even: nothing is measured")
        if self.calibration_tokens is not None and self.calibration_tokens < 2:
            raise ValueError(f"calibration_tokens is {self.calibration_tokens}, but must be at least 2")
        if self.layers is not None and not _ascending(self.layers):
            raise ValueError(f"layers is {self.layers}, but must be layer numbers from 0, ascending, each once")

    @hookimpl
    def prepare_student(self, model: PreTrainedModel, batches: Iterable[Batch] | None) -> None:
        """Remove the other layers, and renumber the remaining ones."""
        from torch import nn

        config = model.config.get_text_config()
        parent, name = _decoder_layers(model, config.num_hidden_layers)
        keep = self._chosen(model, list(getattr(parent, name)), batches)
        kept = nn.ModuleList(getattr(parent, name)[number] for number in keep)
        for position, layer in enumerate(kept):
            _renumber(layer, position)
        setattr(parent, name, kept)
        _cut_config(config, keep)
        _validate_reload(model, next(name for name, module in model.named_modules() if module is kept))

    def _chosen(
        self, model: PreTrainedModel, layers: Sequence[nn.Module], batches: Iterable[Batch] | None
    ) -> list[int]:
        """Return the layers to keep; without batches to measure on, evenly.

        Raises RecipeError where the model has fewer than are to be kept.
        """
        count = len(layers)
        if self.layers is not None:
            if self.layers[-1] >= count:
                what = f"layers names {self.layers[-1]}, but the model has layers 0 to {count - 1}"
                raise _refusal(what, "name layers that the model has", "layers")
            return self.layers
        kept = self.num_hidden_layers
        assert kept is not None
        if kept > count:
            what = f"num_hidden_layers is {kept}, but the model has only {count} layers"
            raise _refusal(what, f"keep at most {count}", "num_hidden_layers")
        if self.importance == "even" or batches is None:
            return [(2 * i * (count - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept)]
        return sorted(set(range(count)) - self._least_important(model, layers, batches, count - kept))

    def _least_important(
        self, model: PreTrainedModel, layers: Sequence[nn.Module], batches: Iterable[Batch], count: int
    ) -> set[int]:
        """Return the `count` layers of least measured importance; log the measurements."""
        from neoplug_models.calibration import documents
        from neoplug_models.layer_importance import block_influence, greedy_removal

        text = documents(batches, self.calibration_tokens or CALIBRATION_TOKENS[self.importance])
        if self.importance == "greedy":
            return {layer for layer, _ in _logged(greedy_removal(model, layers, text, count))}
        influence = block_influence(model, layers, text)
        least = sorted(range(len(layers)), key=lambda layer: influence[layer])
        log.info("block influence, least first: %s", ", ".join(f"{layer} {influence[layer]:.3f}" for layer in least))
        return set(least[:count])


def _logged(steps: Iterable[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Log each step of `greedy_removal`, which may take minutes, and pass it on."""
    for layer, cost in steps:
        log.info("removed layer %d: forward KL from the whole model %.3f", layer, cost)
        yield layer, cost


def _ascending(layers: list[int]) -> bool:
    return bool(layers) and layers == sorted(set(layers)) and layers[0] >= 0


def _refusal(what: str, fix: str, *option: str, why: str = "") -> RecipeError:
    return RecipeError([Problem(what, why=why, fix=fix, path=("student", "prepare", "prune_depth", *option))])


def _decoder_layers(model: PreTrainedModel, count: int) -> tuple[nn.Module, str]:
    """Return the module that contains the list of the decoder's layers, and the attribute's name."""
    from torch import nn

    found = [
        (parent, name)
        for parent in model.base_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    outermost = [(parent, name) for parent, name in found if not any(_inside(parent, *other) for other in found)]
    if len(outermost) != 1:
        what = f"{type(model).__name__} has {len(outermost)} lists of {count} layers where one was expected"
        raise _refusal(what, "leave prune_depth out for this model")
    return outermost[0]


def _inside(module: nn.Module, parent: nn.Module, name: str) -> bool:
    """Return whether `module` is inside the list `name` of `parent`, as the experts of a layer are."""
    return any(module is inner for inner in getattr(parent, name).modules())


def _renumber(layer: nn.Module, position: int) -> None:
    """Update the layer's number in all its modules, which the key-value cache uses as index."""
    for module in layer.modules():
        for attribute in NUMBERS:
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, position)


def _cut_config(config: PretrainedConfig, keep: list[int]) -> None:
    """Set the number of layers, and shorten each list with one entry per layer, such as `layer_types`."""
    count = config.num_hidden_layers
    per_layer: dict[str, Any] = {
        name: [value[number] for number in keep]
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count and "layer" in name
    }
    config.num_hidden_layers = len(keep)
    for name, value in per_layer.items():
        setattr(config, name, value)


def _validate_reload(model: PreTrainedModel, layers: str) -> None:
    """Rebuild the pruned model from its configuration, as loading does. Raises RecipeError where the models differ.

    They do where the type of a layer follows from its number: hybrids, alternating attention that the configuration
    does not list by layer, dense layers below mixtures of experts.
    """
    from neoplug import meta_model, reload_config

    why = "its configuration does not describe each layer, so the pruned model could not be loaded again"
    try:
        rebuilt = meta_model(reload_config(model.config))
    except Exception as error:
        raise _refusal(f"{type(model).__name__} cannot be cut: {error}", "prune another model", why=why) from error
    different = sorted(dict(_structure(model, layers)).items() ^ dict(_structure(rebuilt, layers)).items())
    if different:
        what = f"{type(model).__name__} cannot be cut there: `{different[0][0]}` would differ after loading"
        raise _refusal(what, "keep the pattern of the layers, or prune another model", why=why)


def _structure(model: nn.Module, layers: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what defines the model except its weights' values: shapes, and settings of its layers."""
    for name, weight in model.named_parameters():
        yield name, str(tuple(weight.shape))
    for name, module in model.get_submodule(layers).named_modules(prefix=layers):
        yield f"{name}.", type(module).__name__
        for attribute, value in vars(module).items():
            if isinstance(value, bool | int | float | str) and attribute != "training" and attribute[0] != "_":
                yield f"{name}.{attribute}", repr(value)

"""Comparison of the weights that a recipe selects for its adapter with those that the adapter changes.

Both are read from a model on the meta device: the selection from the plugin's options of peft's names, or else from the
configuration that the plugin gives to peft, and the adapted weights from peft's layers. A difference is refused.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import nn

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.models.adaptable_weights import AdaptableWeight, adaptable_weights
from neoplug.registry import Plugins, path_of
from neoplug.runs.saved_form import is_peft, parts_of, validate_saved_form

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
OPTIONS = (
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "rank_pattern", "alpha_pattern", "r",
)  # fmt: skip


def add_adapter(plugins: Plugins, base: nn.Module, **arguments: Any) -> nn.Module:
    """Return `base` with the adapter of the plugin that implements `add_adapter`, compared with the plugin's options.

    arguments  further arguments of the hook

    Raises:
        RecipeError: the adapter changes other weights than its options select.
        AnswerError: it could not be saved and loaded again.
    """
    ((section, name),) = plugins.named("add_adapter")
    weights, parts = adaptable_weights(base), parts_of(base)
    with recorded_configs() as given:
        adapted: nn.Module = plugins.one("add_adapter", model=base, **arguments)
    validate_saved_form(plugins, parts, adapted)
    if given:
        plugin = plugins.section(section)[name]
        validate_adapted_weights(adapted, weights, plugin, given[-1], path_of(section, name), name)
    return adapted


@contextmanager
def recorded_configs() -> Iterator[list[Any]]:
    """Record a copy of each configuration that is given to peft, before peft changes it, in the list that is yielded.

    Peft replaces names in it: those of experts, and all-linear. So what was selected cannot be read afterwards.
    """
    from peft.tuners.tuners_utils import BaseTuner

    recorded: list[Any] = []
    inject = BaseTuner.inject_adapter

    def recording(tuner: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        recorded.append(deepcopy(tuner.peft_config[adapter_name]))
        return inject(tuner, model, adapter_name, *args, **kwargs)

    with patch.object(BaseTuner, "inject_adapter", recording):
        yield recorded


def validate_adapted_weights(
    adapted: nn.Module, weights: list[AdaptableWeight], plugin: Any, given: Any, path: Key, name: str
) -> None:
    """Raise RecipeError where an adapter of peft changes other weights than were selected; log what all-linear omits.

    weights  of the base, before the adapter was added
    plugin   the adapter's plugin; its options are read where they have the names of peft's
    given    the configuration that the plugin gave to peft, unmodified
    path     the plugin's key in the recipe
    name     of the plugin, for messages
    """
    if not is_peft(adapted):
        return
    selection = Selection.of(plugin, given, weights)
    if selection.target_modules is None and not selection.target_parameters:
        return
    comparison = _Comparison(
        selection, weights, _adapted_ranks(adapted), copied_modules(adapted.get_base_model()), path, name
    )
    if problems := list(comparison.problems()):
        raise RecipeError(problems)
    comparison.log_omitted()


def _adapted_ranks(adapted: Any) -> dict[str, int | None]:
    """Return the weights that peft's layers change: parameter's name in the base -> rank, or None without ranks."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, int | None] = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            layer, parameter = name.replace(".base_layer", ""), getattr(module, "parameter_name", None) or "weight"
            ranks: Any = getattr(module, "r", None)
            rank = ranks.get(adapted.active_adapter) if hasattr(ranks, "get") else None
            found[f"{layer}.{parameter}"] = rank
    return found


def copied_modules(base: nn.Module) -> set[str]:
    """Return the names of the modules of a base of which peft trains a copy, as `modules_to_save` names them."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    return {name for name, module in base.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}


@dataclass(frozen=True)
class Selection:
    """The selection of weights by the options of peft; names and meanings are peft's."""

    target_modules: str | list[str] | None
    target_parameters: list[str]
    exclude_modules: str | list[str] | None
    layers: frozenset[int]
    modules_to_save: list[str]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int]
    r: int | None

    @classmethod
    def of(cls, plugin: Any, given: Any, weights: list[AdaptableWeight]) -> "Selection":
        """Return the selection of a plugin's options; of its configuration for those that it does not have."""
        read = {name: getattr(plugin, name, getattr(given, name, None)) for name in OPTIONS}
        if _is_own_word(read["target_modules"], weights):
            read["target_modules"] = getattr(given, "target_modules", None)
        layers = read["layers_to_transform"]
        return cls(
            target_modules=_names(read["target_modules"]),
            target_parameters=_names(read["target_parameters"]) or [],
            exclude_modules=_names(read["exclude_modules"]),
            layers=frozenset([layers] if isinstance(layers, int) else layers or ()),
            modules_to_save=_names(read["modules_to_save"]) or [],
            rank_pattern=dict(read["rank_pattern"] or {}),
            alpha_pattern=dict(read["alpha_pattern"] or {}),
            r=read["r"] if isinstance(read["r"], int) else None,
        )

    @property
    def takes_all_linear(self) -> bool:
        """Whether target_modules is all-linear."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def has_target(self, weight: AdaptableWeight) -> bool:
        """Return whether target_modules or target_parameters name a weight."""
        if any(f".{weight.parameter}".endswith(f".{end}") for end in self.target_parameters):
            return True
        if self.takes_all_linear:
            return weight.is_linear or weight.is_router
        return self.target_modules is not None and weight.is_named(self.target_modules)

    def is_excluded(self, weight: AdaptableWeight) -> bool:
        """Return whether exclude_modules names a weight."""
        return self.exclude_modules is not None and weight.is_named(self.exclude_modules)

    def is_saved(self, weight: AdaptableWeight) -> bool:
        """Return whether modules_to_save names a weight, or a module that holds it."""
        return any(re.match(rf"(^|.*\.){end}($|\..*)", name) for end in self.modules_to_save for name in weight.names)

    def in_layers(self, weight: AdaptableWeight) -> bool:
        """Return whether layers_to_transform allows a weight."""
        return not self.layers or weight.layer in self.layers

    def selects(self, weight: AdaptableWeight) -> bool:
        """Return whether all options together select a weight."""
        unselected = self.is_excluded(weight) or self.is_saved(weight)
        return self.has_target(weight) and self.in_layers(weight) and not unselected


def _is_own_word(targets: Any, weights: list[AdaptableWeight]) -> bool:
    """Return whether target_modules is a word that the plugin itself replaces by names, as `all-norms`."""
    is_word = isinstance(targets, str) and targets.lower() != ALL_LINEAR
    return is_word and not any(weight.is_named(targets) for weight in weights)


def _names(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else list(value)


@dataclass(frozen=True)
class _Comparison:
    selection: Selection
    weights: list[AdaptableWeight]
    adapted: dict[str, int | None]
    saved: set[str]
    path: Key
    name: str

    def problems(self) -> Iterator[Problem]:
        """Yield each difference between the selection and the adapted weights."""
        yield from self._named()
        yield from self._unselected()
        yield from self._excluded_names()
        yield from self._layers()
        yield from self._saved_names()
        yield from self._patterns()
        yield from self._ranks()

    def log_omitted(self) -> None:
        """Log the linear weights that all-linear names and the adapter does not change; stacked experts apart."""
        if not self.selection.takes_all_linear:
            return
        selected = [weight for weight in self.weights if self.selection.selects(weight)]
        omitted = [weight for weight in selected if not self._is_adapted(weight) and not weight.is_stacked]
        inside = [weight for weight in omitted if weight.layer is not None]  # the head and projections around it
        if inside:
            logger.info("%s: all-linear does not adapt %s", self.name, _listed(inside))

    def _is_adapted(self, weight: AdaptableWeight) -> bool:
        return weight.parameter in self.adapted

    def _named(self) -> Iterator[Problem]:
        """Yield a problem for each target that names nothing, or a weight that is not adapted."""
        targets = self.selection.target_modules
        if targets is None or self.selection.takes_all_linear:
            return
        for at, target in enumerate([targets] if isinstance(targets, str) else targets):
            place = () if isinstance(targets, str) else (at,)
            named = [weight for weight in self.weights if weight.is_named(target if place == () else [target])]
            selected = [weight for weight in named if self.selection.selects(weight)]
            if not selected:
                yield self._without_effect("target_modules", target, named, place)
            elif missing := [weight for weight in selected if not self._is_adapted(weight)]:
                yield self._not_adapted(target, missing, place)

    def _without_effect(self, option: str, target: str, named: list[AdaptableWeight], place: Key) -> Problem:
        path = (*self.path, option, *place)
        if not named:
            return Problem(*self._names_nothing(target), path=path)
        if any(self.selection.is_saved(weight) for weight in named):
            what, why = f"`{target}` is named twice", "modules_to_save trains it fully, so it takes no adapter"
            return Problem(what, why, f"name it in {option} or in modules_to_save, not in both", path)
        if not any(self.selection.in_layers(weight) for weight in named):
            layers = ", ".join(map(str, sorted(self.selection.layers)))
            what = f"`{target}` is in none of the layers of layers_to_transform, {layers}"
            fix = f"leave `{target}` out, or leave layers_to_transform out"
            return Problem(what, "it would have no adapter", fix, path)
        what, fix = f"exclude_modules leaves nothing of `{target}`", f"name `{target}` in one of the two options"
        return Problem(what, "it would have no adapter", fix, path)

    def _names_nothing(self, name: str) -> tuple[str, str, str]:
        """Return what is wrong with a name that no weight has, why, and a fix."""
        held = [weight for weight in self.weights if any(f".{name}." in f".{full}." for full in weight.names)]
        if held:
            ends = ", ".join(sorted({_ending(weight) for weight in held}))
            what, why = f"`{name}` names a module that holds layers, and no layer", "options name layers themselves"
            return what, why, f"name the layers in it: {ends}"
        near = did_you_mean(name, sorted({_ending(weight) for weight in self.weights}))
        ends = ", ".join(sorted({_ending(weight) for weight in self.weights}))
        return f"`{name}` names no layer of the model{near}", "it would have no effect", f"name some of {ends}"

    def _not_adapted(self, target: str, missing: list[AdaptableWeight], place: Key) -> Problem:
        what = f"`{target}` names {_listed(missing)}, which `{self.name}` does not adapt"
        if tied := self._tied_to_saved(missing):
            why = f"its weight is that of `{tied}` too, which modules_to_save trains fully"
            fix = f"name `{target}` or `{tied}`, not both"
        elif all(weight.is_stacked for weight in missing):
            why, fix = "experts are stored in one tensor, which is no linear layer", self._without_experts(missing)
        else:
            why, fix = "peft has taken the name for other weights, or left these out", "name other layers"
        return Problem(what, why, fix, (*self.path, "target_modules", *place))

    def _without_experts(self, experts: list[AdaptableWeight]) -> str:
        ends = sorted({weight.parameter.split(".")[-2] for weight in experts})
        return f"set exclude_modules: [{', '.join(ends)}], or name layers of other modules"

    def _tied_to_saved(self, missing: list[AdaptableWeight]) -> str | None:
        if all(weight.layer is None for weight in missing) and self.selection.modules_to_save:
            return self.selection.modules_to_save[0]
        return None

    def _unselected(self) -> Iterator[Problem]:
        """Yield a problem where weights are adapted that no option selects."""
        selection = self.selection
        extra = [weight for weight in self.weights if self._is_adapted(weight) and not selection.selects(weight)]
        if not extra:
            return
        option = "target_modules"
        if any(selection.is_excluded(weight) for weight in extra):
            option = "exclude_modules"
        elif any(not selection.in_layers(weight) for weight in extra):
            option = "layers_to_transform"
        what = f"`{self.name}` adapts {_listed(extra)}, which {option} does not select"
        why = "peft takes names of layers for stacked experts, or does not apply the option to them"
        yield Problem(what, why, "name other layers, or another adapter", (*self.path, option))

    def _excluded_names(self) -> Iterator[Problem]:
        """Yield a problem for each name in exclude_modules that excludes no target."""
        excluded = self.selection.exclude_modules
        for at, name in enumerate([excluded] if isinstance(excluded, str) else excluded or []):
            place = () if isinstance(excluded, str) else (at,)
            named = [weight for weight in self.weights if weight.is_named(name if place == () else [name])]
            if any(self.selection.has_target(weight) for weight in named):
                continue
            path = (*self.path, "exclude_modules", *place)
            if not named:
                yield Problem(*self._names_nothing(name), path=path)
            else:
                what, why = f"`{name}` is none of the targets", "excluding it has no effect"
                yield Problem(what, why, "leave it out of exclude_modules", path)

    def _layers(self) -> Iterator[Problem]:
        """Yield a problem for each layer number without an adapted weight."""
        reached = {weight.layer for weight in self.weights if self._is_adapted(weight)}
        for layer in sorted(self.selection.layers - {layer for layer in reached if layer is not None}):
            what, fix = f"no weight of layer {layer} is adapted", "name a layer that has one of the target_modules"
            yield Problem(what, "the number would have no effect", fix, (*self.path, "layers_to_transform"))

    def _saved_names(self) -> Iterator[Problem]:
        """Yield a problem for each name in modules_to_save that peft does not train fully."""
        for at, end in enumerate(self.selection.modules_to_save):
            if not any(re.match(rf"(^|.*\.){end}($|\..*)", name) for name in self.saved | self._tied_names()):
                what, fix = f"`{end}` in modules_to_save is not trained", "name a module of the model that has weights"
                yield Problem(what, "peft finds no such module", fix, (*self.path, "modules_to_save", at))

    def _tied_names(self) -> set[str]:
        """Return the modules outside the layers, if one of them is trained: with tied weights it stands for both."""
        outside = {name for weight in self.weights if weight.layer is None for name in weight.names}
        return outside if outside & self.saved else set()

    def _patterns(self) -> Iterator[Problem]:
        """Yield a problem for each key of rank_pattern or alpha_pattern that means no adapted weight."""
        for option in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self.selection, option):
                named = [weight for weight in self.weights if weight.has_pattern(key)]
                if any(self._is_adapted(weight) for weight in named):
                    continue
                path = (*self.path, option)
                if named:
                    what, why = f"`{key}` is not adapted", f"{option} sets values of adapted layers"
                    yield Problem(what, why, "name it in target_modules too, or leave it out here", path)
                else:
                    what, why, fix = self._names_nothing(key)
                    why = "a key is a regex of the end of a layer's whole name, as `q_proj` or `layers.0.*`"
                    yield Problem(what, why, fix, path)

    def _ranks(self) -> Iterator[Problem]:
        """Yield a problem where a weight's rank is not that of its key in rank_pattern."""
        for weight in self.weights:
            rank = self.adapted.get(weight.parameter)
            keys = [key for key in self.selection.rank_pattern if weight.has_pattern(key)]
            if rank is None or not keys:
                continue
            wanted = self.selection.rank_pattern[keys[0]]
            if rank not in (wanted, wanted * len(weight.projections)):
                what = f"`{weight.parameter}` has rank {rank}, but rank_pattern sets {wanted} by `{keys[0]}`"
                why = "peft does not apply the key to it"
                yield Problem(what, why, "name the layer by its whole name", (*self.path, "rank_pattern"))


def _ending(weight: AdaptableWeight) -> str:
    """Return the short name of a weight for messages: the last part of its layer's name, or of a stacked parameter."""
    return weight.names[0].rpartition(".")[2]


def _listed(weights: Iterable[AdaptableWeight]) -> str:
    """Return weights in words: the only one, or their number and the first."""
    names = [weight.names[0] for weight in weights]
    return f"`{names[0]}`" if len(names) == 1 else f"{len(names)} weights, as `{names[0]}`"

"""Base of LoRA and its variants: peft's options for low-rank matrices, and their checks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import Problem, RecipeError, adaptable_weights, hookimpl
from neoplug_adapters.companions import key_of, quantiser
from neoplug_adapters.experts import (
    Targets,
    converted_names,
    parameter_patterns,
    pattern_values,
    select,
    unpaired_projection,
)
from neoplug_adapters.input_casts import leave_casts_to_autocast
from neoplug_adapters.targets import linear_sizes, target_names, unmatched, validate_regexes
from neoplug_adapters.tuner import Tuner, is_transposed

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from neoplug import Batch, Recipe

log = logging.getLogger("neoplug")  # the run's log has its handlers there

# Initialisations of peft that are separate plugins.
VARIANTS = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga", "mica")


@dataclass(eq=False)
class LowRank(Tuner):
    """W + scale B A with trained A [r, in] and B [out, r]; options have peft's names and meaning."""

    config: ClassVar[str] = "LoraConfig"
    linear_only: ClassVar[bool] = False  # refuses embeddings, on which peft would train plain LoRA without a warning
    takes_components: ClassVar[bool] = False  # it starts from r components of each weight, so r is at most their number
    starts: ClassVar[tuple[bool | str, ...]] = (True, "gaussian", "orthogonal")  # values of init_lora_weights

    r: int = 8  # the rank, above 0; scale is lora_alpha / r
    lora_alpha: int = 16  # peft's default is 8 at r = 8; 2 r is the usual choice
    lora_dropout: float = 0.0  # in [0, 1), on what A reads
    rank_pattern: dict[str, int] = field(default_factory=dict)  # module name or regex -> r of these modules
    alpha_pattern: dict[str, int] = field(default_factory=dict)  # module name or regex -> lora_alpha of these modules
    modules_to_save: list[str] | None = None  # name endings of modules to train fully; tied weights stay tied
    bias: Literal["none", "all", "lora_only"] = "none"  # which biases of the base are trained
    use_rslora: bool = False  # scale is lora_alpha / sqrt(r)
    init_lora_weights: bool | str = True  # true (A uniform, B zero), gaussian (A normal, B zero), orthogonal (even r)
    use_dora: bool = False  # fixed by the plugin: true for dora, else false

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_start()
        validate_regexes({"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern})
        super().__post_init__()

    def _check_numbers(self) -> None:
        for name, values in {
            "r": [self.r],
            "lora_alpha": [self.lora_alpha],
            "rank_pattern": self.rank_pattern.values(),
            "alpha_pattern": self.alpha_pattern.values(),
        }.items():
            if wrong := [value for value in values if not 0 < value < inf]:
                raise ValueError(f"{name} is {wrong[0]}, but must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}, but must lie in [0, 1)")

    def _check_start(self) -> None:
        start = self.init_lora_weights
        for variant in VARIANTS:
            if isinstance(start, str) and start.lower().startswith(variant):
                raise ValueError(
                    f"init_lora_weights is {start}, which makes it another adapter: name the plugin `{variant}` instead"
                )
        if start is False:
            raise ValueError("init_lora_weights is false, so the student would not start at its base; leave it out")
        if start not in self.starts:
            raise ValueError(f"init_lora_weights is {start}, but must be true, gaussian or orthogonal")
        odd = [r for r in (self.r, *self.rank_pattern.values()) if r % 2]
        if start == "orthogonal" and odd:
            raise ValueError(f"init_lora_weights is orthogonal, which needs an even r, but r is {odd[0]}")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student if this adapter, or its initialisation, does not support one."""
        loader = quantiser(recipe.student.load)
        if self.traits.not_on_quantised:
            return super().check(recipe)
        if self.init_lora_weights != "orthogonal" or loader is None:
            return []
        return [
            Problem(
                f"init_lora_weights: orthogonal does not support a student loaded by `{loader}`",
                "peft gives the new matrices the integer type of the quantised weights, which takes no gradient",
                "leave init_lora_weights out, or load the student unquantised",
                ("adapter", key_of(self.name, recipe.adapter) or self.name, "init_lora_weights"),
            )
        ]

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        yield from super()._unmatched(model)
        yield from unmatched(model, {"modules_to_save": self.modules_to_save}, None, {})
        yield from self._quantised_modules_to_save(model)
        yield from unmatched(model, {}, None, {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern})

    def _modules_to_save(self, model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
        """Return the modules that `modules_to_save` names, with their full names."""
        ends = tuple(self.modules_to_save or ())
        return [(name, module) for name, module in model.named_modules() if name.endswith(ends)] if ends else []

    def _quantised_modules_to_save(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong with it) for each quantised module that should be fully trained."""
        for name, module in self._modules_to_save(model):
            if not all(weight.is_floating_point() for weight in module.parameters()):
                yield "modules_to_save", f"`{name}` is quantised, and such weights take no gradient"

    def _tied_modules_to_save(self, model: PreTrainedModel) -> list[str] | None:
        """Return `modules_to_save` by full names if they include embeddings or a head that share their weight.

        Of these two only the head is listed: peft ties the embeddings to it in every family, but finds embeddings only
        under a few names. None without such a pair.
        """
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        saved = self._modules_to_save(model)
        pair = [module for _, module in saved if module in (embeddings, head)]
        if not pair or head is None or embeddings.weight is not head.weight:
            return None
        heads = {name for name, module in model.named_modules() if module is head}
        return sorted(heads | {name for name, module in saved if module not in pair})

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the arguments of peft's configuration; fully trained weights that are tied stay tied."""
        tied = self._tied_modules_to_save(model)
        return super()._options(model) | ({"ensure_weight_tying": True, "modules_to_save": tied} if tied else {})

    def _config(self, model: PreTrainedModel, total_steps: int) -> Any:
        from peft import LoraConfig

        options = self._options(model)
        if self.target_modules == "all-linear":  # peft's own all-linear, which also finds fused experts
            options["exclude_modules"] = self._excluded(model)
        whole = self._targets_with_experts(model)
        if whole is not None:
            options |= self._by_whole_names(whole)
        if self.takes_components and self.r == type(self).r and not self.rank_pattern:
            excluded = options["exclude_modules"]
            targets = whole.module_names if whole else target_names(
                model, self.target_modules, excluded, self.layers_to_transform
            )  # fmt: skip
            options |= self._fitted_ranks(model, targets)
        return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=is_transposed(model), **options)

    def _targets_with_experts(self, model: PreTrainedModel) -> Targets | None:
        """Return the targets in a model of which some are given to peft as `target_parameters`; None in all others.

        Raises RecipeError for targets that this adapter cannot adapt.
        """
        if not any(weight.is_stacked for weight in adaptable_weights(model)):
            return None
        excluded = self._excluded(model) if self.target_modules == "all-linear" else self.exclude_modules
        targets = select(model, self.target_modules, excluded, self.layers_to_transform, self.modules_to_save)
        if not targets.parameters:
            return targets if converted_names(model) else None
        if pair := unpaired_projection(self.target_modules, targets.experts):
            what = f"`{pair[0]}` is named without `{pair[1]}`"
            raise self._option_error("target_modules", what, f"name `{pair[1]}` too: experts hold both in one tensor")
        if self.traits.not_on_experts:
            raise RecipeError([self._problem_of_experts(targets)])
        return targets

    def _problem_of_experts(self, targets: Targets) -> Problem:
        path = ("adapter", self.name, "target_modules")
        if targets.experts:
            what, why = f"`{self.name}` cannot adapt the experts of this model", self.traits.not_on_experts
            others = ", ".join(sorted({name.rpartition(".")[2] for name in targets.module_names}))
            layers = f"name the layers to adapt, as target_modules: [{others}]" if others else "name other layers"
            return Problem(what, why, f"{layers}, or name `lora`", path)
        name = targets.parameters[0].names[0]
        what = f"`{self.name}` cannot adapt `{name}`"
        why = "peft takes its name for the experts in this family, and adapts it only as a parameter, by plain LoRA"
        return Problem(what, why, "name `lora`, or other layers", path)

    def _by_whole_names(self, targets: Targets) -> dict[str, Any]:
        """Return the arguments of peft's configuration that select exactly these targets, with their ranks."""
        for option in ("rank_pattern", "alpha_pattern"):
            for weight in targets.experts:
                if (values := pattern_values(weight, getattr(self, option))) and len(set(values)) > 1:
                    what = f"{option} has several values for the projections in `{weight.parameter}`: {values}"
                    raise self._option_error(option, what, "one value: experts hold these projections in one tensor")
        patterns = {
            name: parameter_patterns(targets.parameters, pattern, default)
            | {key: pattern[key] for key in pattern if any(weight.has_pattern(key) for weight in targets.modules)}
            for name, pattern, default in (
                ("rank_pattern", self.rank_pattern, self.r), ("alpha_pattern", self.alpha_pattern, self.lora_alpha)
            )
        }  # fmt: skip
        return {
            "target_modules": targets.module_names,
            "target_parameters": [weight.parameter for weight in targets.parameters],
            "exclude_modules": None,
            "layers_to_transform": None,
            **patterns,
        }

    def _fitted_ranks(self, model: PreTrainedModel, targets: list[str]) -> dict[str, Any]:
        """Return lower ranks, with the same scale, for targets that have fewer than r components."""
        most = {name: min(size) for name in targets for size in linear_sizes(model, [name])}
        small = {name: rank for name, rank in most.items() if rank < self.r}
        if small:
            ranks = ", ".join(sorted({f"{name.rpartition('.')[2]} ({rank})" for name, rank in small.items()}))
            log.info("%s: r is not %d where a target has fewer components: %s", self.name, self.r, ranks)
        power = 0.5 if self.use_rslora else 1
        alphas = {name: self.lora_alpha * (rank / self.r) ** power for name, rank in small.items()}
        return {"rank_pattern": small, "alpha_pattern": alphas | self.alpha_pattern}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        self._validate_shared(model)
        adapted = super()._adapt(model, config, batches)
        self._validate_embeddings(adapted)
        leave_casts_to_autocast(adapted)
        return adapted

    def _validate_shared(self, model: PreTrainedModel) -> None:
        """Refuse to change the weight of a head that shares it with the embeddings."""
        head = model.get_output_embeddings()
        if not self.traits.changes_base or head is None or head.weight is not model.get_input_embeddings().weight:
            return
        names = [] if self.target_modules == "all-linear" else self._target_names(model)
        if any(model.get_submodule(name) is head for name in names):
            what, why = f"`{self.name}` cannot adapt the head of this model", "its weight is the embeddings' too"
            reason = self.traits.changes_base
            fix = f"leave the head out of target_modules, or name `lora`, which does not change it: {reason}"
            raise RecipeError([Problem(what, why, fix, ("adapter", self.name, "target_modules"))])

    def _validate_embeddings(self, adapted: Any) -> None:
        """Refuse embeddings that peft adapts by plain LoRA in place of this variant."""
        for name, layer in adapted.get_base_model().named_modules() if self.linear_only else ():
            if "default" in getattr(layer, "lora_embedding_A", {}):
                what, why = f"`{self.name}` cannot adapt `{name}`", "peft starts and trains it as plain LoRA there"
                fix = "name only linear layers, or name `lora`"
                raise RecipeError([Problem(what, why, fix, ("adapter", self.name, "target_modules"))])

    def _for_peft(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that peft has, with its default initialisation in place of the variant's."""
        plain = {name: value for name, value in options.items() if name not in self.traits.own_options}
        return plain | {"init_lora_weights": True}

    def _validate_ranks(self, adapted: Any) -> None:
        """Refuse a rank above the number of a weight's components."""
        for name, layer in lora_layers(adapted):
            r, most = layer.r["default"], min(layer.in_features, layer.out_features)
            if r > most:
                what = f"r is {r}, but `{name}` has only {most} components to take"
                fix = f"an r up to {most}, or a lower one for it in rank_pattern"
                raise RecipeError([Problem(what, fix=fix, path=("adapter", self.name, "r"))])


def write_adapter(config: LoraConfig, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write an adapter in peft's two files, configuration and weights; tied weights are written twice, as peft does."""
    from safetensors.torch import save_file

    plain = deepcopy(config)
    plain.inference_mode = True
    separate = {name: weight.detach().clone().contiguous() for name, weight in weights.items()}
    save_file(separate, path / "adapter_model.safetensors", metadata={"format": "pt"})
    plain.save_pretrained(path)


def lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yield each linear layer that has matrices A and B, with its name in the base."""
    for name, layer in adapted.get_base_model().named_modules():
        if "default" in getattr(layer, "lora_A", {}):
            yield name, layer

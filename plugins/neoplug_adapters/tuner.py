"""Base of the adapters of peft: targets, checks of options, and an initialisation that follows the run's seed.

Peft itself accepts a negative rank, a dropout of 2 and targets that do not exist, so all options are checked here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from math import gcd, inf
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits, Problem, RecipeError, hookimpl
from neoplug_adapters.companions import key_of, quantiser
from neoplug_adapters.targets import (
    Names,
    linear_endings,
    linear_sizes,
    single_output_layers,
    target_names,
    unadapted_expert_weights,
    uncalled_layers,
    unmatched,
    validate_regexes,
    with_endings,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from neoplug import Batch, Recipe

log = logging.getLogger("neoplug")  # the run's log has its handlers there

# Options that peft's error messages also name where the layers are the fault, not the option's value.
OF_LAYERS = {"target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", "bias"}


@dataclass(eq=False)
class Tuner:
    """An adapter of peft; options are fields of peft's configuration, under the same names.

    `traits` states what the adapter does not support; tests/catalogue tests everything else.
    """

    name: ClassVar[str]  # of the plugin
    config: ClassVar[str]  # the class of peft's configuration
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r")
    positive: ClassVar[tuple[str, ...]] = ()  # options that must be above 0 if given
    shares: ClassVar[tuple[str, ...]] = ()  # options in [0, 1)
    drawn: ClassVar[tuple[str, ...]] = ()  # options that are seeds: if left out, drawn from the run's seed
    on_meta: ClassVar[bool] = True  # peft can create its weights on the meta device; else a plan needs their memory
    fixed: ClassVar[dict[str, Any]] = {}  # fields of peft's configuration that are not options

    target_modules: str | list[str] = "all-linear"  # all-linear (without the head), name endings, or a regex of names
    exclude_modules: str | list[str] | None = None  # excluded from the targets: name endings, or a regex of names
    layers_to_transform: int | list[int] | None = None  # layers, counted from 0; target_modules must be a list

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.traits = AdapterTraits.of(cls)  # reads the older form, class variables

    def __post_init__(self) -> None:
        self._check_ranges()
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":  # as peft reads it
            self.target_modules = "all-linear"
        if not self.target_modules:
            raise ValueError("target_modules is empty, so nothing would train; all-linear takes every linear layer")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules to be a list of names, as [q_proj, v_proj]")
        validate_regexes(
            {
                "target_modules": [self.target_modules] if isinstance(self.target_modules, str) else [],
                "exclude_modules": [self.exclude_modules] if isinstance(self.exclude_modules, str) else [],
            }
        )

    def _check_ranges(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} is {value}, but must be above 0")
        for name in self.shares:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie in [0, 1)")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student if this adapter does not support one."""
        loader = quantiser(recipe.student.load)
        if loader is None or not self.traits.not_on_quantised:
            return []
        what = f"`{self.name}` does not support a student loaded by `{loader}`"
        fix = "load the student unquantised, or name `lora`, which does not change the quantised weights"
        path = ("adapter", key_of(self.name, recipe.adapter) or self.name)
        return [Problem(what, self.traits.not_on_quantised, fix, path)]

    @hookimpl
    def add_adapter(
        self, model: PreTrainedModel, batches: Iterable[Batch] | None, total_steps: int, rng: torch.Generator
    ) -> torch.nn.Module:
        """Return the PeftModel, initialised from `rng`; the state of torch's global generators does not change.

        Raises RecipeError where a name in the options matches no module, or peft cannot adapt the targets.
        """
        from neoplug import quiet_peft

        problems = [self._problem(option, what) for option, what in self._unmatched(model)]
        if problems:
            raise RecipeError(problems)
        with (
            self._problems(model, ValueError, NotImplementedError),
            drawing_from(rng),
            quiet_peft(),
            self._device_of(model),
        ):
            config = self._config(model, total_steps)
            with self._problems(model, TypeError):  # peft's error for layers of a type that it does not support
                adapted = self._adapt(model, config, batches)
        if experts := unadapted_expert_weights(adapted, getattr(config, "target_parameters", None)):
            log.info("%s does not adapt %d weights of experts, which are no linear layers", self.name, experts)
        return adapted

    def _device_of(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Create the adapter of a model on the meta device there too, where peft would create it on the CPU."""
        return torch.device("meta") if self.on_meta and model.device.type == "meta" else nullcontext()

    def _adapt(self, model: PreTrainedModel, config: PeftConfig, batches: Iterable[Batch] | None) -> torch.nn.Module:
        """Return the model with the adapter; peft draws random numbers from torch's global generators."""
        from peft import get_peft_model

        return get_peft_model(model, config)  # this also completes the configuration

    def _config(self, model: PreTrainedModel, total_steps: int) -> PeftConfig:
        """Return peft's configuration: the options, with defaults that fit the model, and the targets' full names."""
        import peft

        kind = getattr(peft, self.config)
        known = {field.name for field in fields(kind)}
        options = self._options(model)
        options["target_modules"] = self._target_names(model)
        options |= dict.fromkeys(("exclude_modules", "layers_to_transform"))  # applied to the targets already
        options |= self._fitted(linear_sizes(model, options["target_modules"]), total_steps)
        options |= {name: int(torch.randint(2**31, (), device="cpu")) for name in self.drawn if options[name] is None}
        if "fan_in_fan_out" in known:
            options["fan_in_fan_out"] = is_transposed(model)
        return kind(task_type="CAUSAL_LM", **{name: value for name, value in options.items() if name in known})

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the fields of peft's configuration, except those that select the targets."""
        return {field.name: deepcopy(getattr(self, field.name)) for field in fields(self)} | self.fixed

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        """Return the options that depend on the (inputs, outputs) of the targets, or on the number of steps."""
        return {}

    def _dividing(self, option: str, sizes: Iterable[int], usual: int, step: int = 1) -> int:
        """Return the value of an option that must divide these sizes and be a multiple of `step`.

        If it is left out, the largest such value up to `usual`. Raises RecipeError where the given value is none.
        """
        divisor, given = gcd(*sizes), getattr(self, option)
        if given is None:
            values = [size for size in range(step, usual + 1, step) if divisor % size == 0]
            return self._logged(option, max(values, default=step), usual)
        if divisor % given or given % step:
            what = f"{option} is {given}, which does not divide all sizes of the targets"
            raise self._option_error(option, what, f"a divisor of {divisor}, or leave it out: one is chosen")
        return int(given)

    def _up_to(self, option: str, most: int, usual: int) -> int:
        """Return the value of an option that is at most `most`; if it is left out, `usual` or, if lower, `most`.

        Raises RecipeError where the given value is higher.
        """
        given = getattr(self, option)
        if given is None:
            return self._logged(option, min(usual, most), usual)
        if given > most:
            what = f"{option} is {given}, but the smallest target allows {most}"
            raise self._option_error(option, what, f"up to {most}")
        return int(given)

    def _logged(self, option: str, value: int, usual: int) -> int:
        """Return the value; log it if it is not the usual one."""
        if value != usual:
            log.info("%s: %s is %d, not %d: fitted to the sizes of the targets", self.name, option, value, usual)
        return value

    def _option_error(self, option: str, what: str, fix: str) -> RecipeError:
        return RecipeError([Problem(what, fix=fix, path=("adapter", self.name, option))])

    def _target_names(self, model: PreTrainedModel) -> list[str]:
        """Return the full names of the modules to adapt."""
        excluded = self._excluded(model) if self.target_modules == "all-linear" else self.exclude_modules
        return target_names(model, self.target_modules, excluded, self.layers_to_transform)

    def _excluded(self, model: PreTrainedModel) -> Names:
        """Return what all-linear leaves out: `exclude_modules`, and layers on which an adapter would have no effect."""
        left_out = {
            "which the model reads without calling": uncalled_layers(model),
            "which have one output": single_output_layers(model),
        }
        for why, endings in left_out.items():
            if endings:
                log.info("%s: all-linear leaves out %s, %s", self.name, ", ".join(endings), why)
        endings = [ending for group in left_out.values() for ending in group]
        return with_endings(self.exclude_modules, endings) if endings else self.exclude_modules

    @contextmanager
    def _problems(self, model: PreTrainedModel, *kinds: type[Exception]) -> Iterator[None]:
        """Raise RecipeError for exceptions of these types, with which peft refuses; others are faults in code."""
        present = linear_endings(model)
        try:
            yield
        except kinds as error:
            raise RecipeError([self._peft_problem(error, present)]) from error

    def _peft_problem(self, error: Exception, present: list[str]) -> Problem:
        """Return the problem that peft reports: with an option that its message names, else with the targets.

        present  names of linear layers that the model has
        """
        usual = [name for name in ("q_proj", "v_proj") if name in present] or present
        layers = f"target_modules: [{', '.join(usual)}]"
        named = {field.name for field in fields(self)} & set(re.findall(r"\w+", str(error)))
        for option in sorted(named - OF_LAYERS):
            fix = f"another {option}, or other layers as {layers}"
            return Problem(f"peft does not take this {option}", str(error), fix, ("adapter", self.name, option))
        fix = f"name the layers to adapt, as {layers}"
        return Problem("peft cannot adapt these targets", str(error), fix, ("adapter", self.name, "target_modules"))

    def _problem(self, option: str, what: str) -> Problem:
        return Problem(what, "it would have no effect, or nothing would train", path=("adapter", self.name, option))

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong with it) for each option that names something the model does not have."""
        targets = {name: getattr(self, name) for name in ("target_modules", "exclude_modules")}
        return unmatched(model, targets, self.layers_to_transform, {})


def is_transposed(model: PreTrainedModel) -> bool:
    """Return whether a model has GPT-2's layers, whose weights are [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


@contextmanager
def drawing_from(rng: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators, from which peft draws, from `rng`; restore their state afterwards."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

"""What peft's adapters share: targets, names that are checked, a start that follows the run's seed.

Peft itself takes a negative rank, a dropout of 2 and targets that do not exist, so everything is checked here.
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
    beside,
    bypassed,
    chosen,
    passed_by,
    sizes,
    unmatched,
    validate_regexes,
    vectors,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from neoplug import Batch, Recipe

log = logging.getLogger("neoplug")  # the run's log has its handlers there

# Options that peft names in complaints of layers too.
OF_LAYERS = {"target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", "bias"}


@dataclass(eq=False)
class Tuner:
    """An adapter of peft's: its options are fields of peft's configuration, by their own names.

    `traits` states what an adapter of this kind cannot do; the tests in tests/catalogue test all else.
    """

    name: ClassVar[str]  # the plugin's own
    config: ClassVar[str]  # the class of peft's configuration
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r")
    positive: ClassVar[tuple[str, ...]] = ()  # options that must be above 0 where they are given
    shares: ClassVar[tuple[str, ...]] = ()  # options in [0, 1)
    drawn: ClassVar[tuple[str, ...]] = ()  # options that are seeds of peft's own: drawn from the run's where left out
    on_meta: ClassVar[bool] = True  # peft makes its weights on the meta device too; else a plan takes their memory
    fixed: ClassVar[dict[str, Any]] = {}  # what peft is told whatever the recipe says

    target_modules: str | list[str] = "all-linear"  # that (not the head), name endings, or a regex of names
    exclude_modules: str | list[str] | None = None  # taken out of the targets again
    layers_to_transform: int | list[int] | None = None  # layers, counted from 0; target_modules must be a list

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.traits = AdapterTraits.of(cls)  # for a class that states them in the older form

    def __post_init__(self) -> None:
        self._check_ranges()
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
        """Refuse a quantised student where this adapter cannot stand on one."""
        loader = quantiser(recipe.student.load)
        if loader is None or not self.traits.not_on_quantised:
            return []
        what = f"`{self.name}` cannot stand on a student loaded by `{loader}`"
        fix = "load the student unquantised, or name `lora`, which trains beside the quantised weights"
        path = ("adapter", key_of(self.name, recipe.adapter) or self.name)
        return [Problem(what, self.traits.not_on_quantised, fix, path)]

    @hookimpl
    def add_adapter(
        self, model: PreTrainedModel, batches: Iterable[Batch] | None, total_steps: int, rng: torch.Generator
    ) -> torch.nn.Module:
        """Return the PeftModel. Same seed, same start; torch's own generators are left as they were.

        Raises RecipeError where a name in the options matches no module, or peft cannot adapt what they name.
        """
        from neoplug import quiet_peft

        problems = [self._problem(option, what) for option, what in self._unmatched(model)]
        if problems:
            raise RecipeError(problems)
        with self._refusals(ValueError, NotImplementedError), drawing_from(rng), quiet_peft(), self._where(model):
            config = self._config(model, total_steps)
            with self._refusals(TypeError):  # peft's error for layers of a type that it does not support
                adapted = self._adapt(model, config, batches)
        if experts := passed_by(adapted, getattr(config, "target_parameters", None)):
            log.info("%s passes by %d weights of experts, which are no linear layers", self.name, experts)
        return adapted

    def _where(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Let a skeleton's adapter be a skeleton too: peft makes its matrices on the CPU."""
        return torch.device("meta") if self.on_meta and model.device.type == "meta" else nullcontext()

    def _adapt(self, model: PreTrainedModel, config: PeftConfig, batches: Iterable[Batch] | None) -> torch.nn.Module:
        """Return the model with the adapter; random numbers come from torch's global generators."""
        from peft import get_peft_model

        return get_peft_model(model, config)  # which completes the configuration

    def _config(self, model: PreTrainedModel, total_steps: int) -> PeftConfig:
        """Return peft's configuration: the options, those left out fitted to the model, and the targets by name."""
        import peft

        kind = getattr(peft, self.config)
        known = {field.name for field in fields(kind)}
        options = self._options(model)
        options["target_modules"] = self._chosen(model)
        options |= dict.fromkeys(("exclude_modules", "layers_to_transform"))  # the targets are without them
        options |= self._fitted(sizes(model, options["target_modules"]), total_steps)
        options |= {name: int(torch.randint(2**31, (), device="cpu")) for name in self.drawn if options[name] is None}
        if "fan_in_fan_out" in known:
            options["fan_in_fan_out"] = is_transposed(model)
        return kind(task_type="CAUSAL_LM", **{name: value for name, value in options.items() if name in known})

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what peft's configuration is told beside the targets."""
        return {field.name: deepcopy(getattr(self, field.name)) for field in fields(self)} | self.fixed

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        """Return the options that depend on the model: inputs and outputs of each target; and on the run's length."""
        return {}

    def _dividing(self, option: str, sizes: Iterable[int], usual: int, step: int = 1) -> int:
        """Return an option that divides these sizes: the one given, or the largest multiple of `step` up to `usual`.

        Raises RecipeError where the one given does not.
        """
        whole, given = gcd(*sizes), getattr(self, option)
        if given is None:
            found = [size for size in range(step, usual + 1, step) if whole % size == 0]
            return self._told(option, max(found, default=step), usual)
        if whole % given or given % step:
            fix = f"a divisor of {whole}, or leave it out: one is found"
            raise self._unfit(option, f"{option} is {given}, which does not divide all sizes of the targets", fix)
        return int(given)

    def _up_to(self, option: str, most: int, usual: int) -> int:
        """Return an option that is at most `most`: the one given, or the usual one if it is no more than that.

        Raises RecipeError where the one given is more.
        """
        given = getattr(self, option)
        if given is None:
            return self._told(option, min(usual, most), usual)
        if given > most:
            raise self._unfit(option, f"{option} is {given}, but the smallest target allows {most}", f"up to {most}")
        return int(given)

    def _told(self, option: str, value: int, usual: int) -> int:
        if value != usual:
            log.info("%s: %s is %d, not %d: fitted to the sizes of the targets", self.name, option, value, usual)
        return value

    def _unfit(self, option: str, what: str, fix: str) -> RecipeError:
        return RecipeError([Problem(what, fix=fix, path=("adapter", self.name, option))])

    def _chosen(self, model: PreTrainedModel) -> list[str]:
        excluded = self._excluded(model) if self.target_modules == "all-linear" else self.exclude_modules
        return chosen(model, self.target_modules, excluded, self.layers_to_transform)

    def _excluded(self, model: PreTrainedModel) -> Names:
        """Return what all-linear leaves out: as asked, what no adapter can reach, and what has no rank to adapt."""
        left_out = {"which the model reads without calling": bypassed(model), "which have one output": vectors(model)}
        for why, endings in left_out.items():
            if endings:
                log.info("%s: all-linear leaves out %s, %s", self.name, ", ".join(endings), why)
        endings = [ending for found in left_out.values() for ending in found]
        return beside(self.exclude_modules, endings) if endings else self.exclude_modules

    @contextmanager
    def _refusals(self, *kinds: type[Exception]) -> Iterator[None]:
        """Raise RecipeError for what peft refuses by an error of these kinds; others are faults in code."""
        try:
            yield
        except kinds as error:
            raise RecipeError([self._refused(error)]) from error

    def _refused(self, error: Exception) -> Problem:
        """Return what peft refuses: an option that it names, else the layers, whose kind it cannot adapt."""
        named = {field.name for field in fields(self)} & set(re.findall(r"\w+", str(error)))
        for option in sorted(named - OF_LAYERS):
            fix = f"another {option}, or other layers as target_modules: [q_proj, v_proj]"
            return Problem(f"peft does not take this {option}", str(error), fix, ("adapter", self.name, option))
        fix = "name the layers to adapt, as target_modules: [q_proj, v_proj]"
        return Problem("peft cannot adapt these targets", str(error), fix, ("adapter", self.name, "target_modules"))

    def _problem(self, option: str, what: str) -> Problem:
        return Problem(what, "it would have no effect, or nothing would train", path=("adapter", self.name, option))

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        """Yield each option that does not fit the model, and what is wrong with it."""
        targets = {name: getattr(self, name) for name in ("target_modules", "exclude_modules")}
        return unmatched(model, targets, self.layers_to_transform, {})


def is_transposed(model: PreTrainedModel) -> bool:
    """Say whether a model has GPT-2's layers, which keep [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


@contextmanager
def drawing_from(rng: torch.Generator) -> Iterator[None]:
    """Let torch's global generators, from which peft draws, follow `rng` for a while."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

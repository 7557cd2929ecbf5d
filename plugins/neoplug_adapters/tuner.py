"""What peft's adapters share: targets, names that are checked, a start that follows the run's seed.

Peft itself takes a negative rank, a dropout of 2 and targets that do not exist, so everything is checked here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug.errors import Problem, RecipeError
from neoplug.hookspecs import hookimpl
from neoplug_adapters.companions import key_of, quantiser
from neoplug_adapters.targets import Names, beside, bypassed, chosen, passed_by, refuse_wrong_regexes, sizes, unmatched

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from neoplug.data.batch import Batch
    from neoplug.recipe import Recipe

log = logging.getLogger("neoplug")


@dataclass(eq=False)
class Tuner:
    """An adapter of peft's: its options are fields of peft's configuration, by their own names.

    What a kind of adapter cannot do it says itself, in attributes of its class; tests hold it to the rest.
    """

    name: ClassVar[str]  # the plugin's own
    config: ClassVar[str]  # the class of peft's configuration
    not_on_quantised: ClassVar[str] = ""  # why it cannot stand on integer weights; empty: it can
    starts_elsewhere: ClassVar[str] = ""  # why it does not start as the base; empty: it does
    changes_base: ClassVar[str] = ""  # why the base's own weights are others while it trains; empty: they stay
    seedless: ClassVar[str] = ""  # why all seeds start alike; empty: they do not
    drawn: ClassVar[tuple[str, ...]] = ()  # options that are seeds of peft's own: drawn from the run's where left out

    target_modules: str | list[str] = "all-linear"  # that (not the head), name endings, or a regex of names
    exclude_modules: str | list[str] | None = None  # taken out of the targets again
    layers_to_transform: int | list[int] | None = None  # layers, counted from 0; target_modules must be a list
    modules_to_save: list[str] | None = None  # name endings of modules that train whole; tied weights stay tied

    def __post_init__(self) -> None:
        if not self.target_modules:
            raise ValueError("target_modules is empty, so nothing would train; all-linear takes every linear layer")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules to be a list of names, as [q_proj, v_proj]")
        refuse_wrong_regexes(
            {
                "target_modules": [self.target_modules] if isinstance(self.target_modules, str) else [],
                "exclude_modules": [self.exclude_modules] if isinstance(self.exclude_modules, str) else [],
            }
        )

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student where this adapter cannot stand on one."""
        loader = quantiser(recipe.student.load)
        if loader is None or not self.not_on_quantised:
            return []
        what = f"`{self.name}` cannot stand on a student loaded by `{loader}`"
        fix = "load the student unquantised, or name `lora`, which trains beside the quantised weights"
        return [Problem(what, self.not_on_quantised, fix, ("adapter", key_of(self.name, recipe.adapter) or self.name))]

    @hookimpl
    def add_adapter(
        self, model: PreTrainedModel, batches: Iterable[Batch] | None, total_steps: int, rng: torch.Generator
    ) -> torch.nn.Module:
        """Return the PeftModel. Same seed, same start; torch's own generators are left as they were.

        Raises RecipeError where a name in the options matches no module, or peft cannot adapt what they name.
        """
        from neoplug.models.quiet import quiet_peft

        wrong = [*self._unmatched(model), *self._quantised(model)]
        problems = [self._problem(option, what) for option, what in wrong]
        if problems:
            raise RecipeError(problems)
        try:
            with _drawing_from(rng), quiet_peft(), _without_memory(model):
                config = self._config(model, total_steps)
                adapted = self._adapt(model, config, batches)
        except ValueError as error:  # a target of a kind that peft cannot adapt, or all of them excluded
            raise RecipeError([self._refused(error)]) from error
        if experts := passed_by(adapted, getattr(config, "target_parameters", None)):
            log.info("%s passes by %d weights of experts, which are no linear layers", self.name, experts)
        return adapted

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
        options |= {name: int(torch.randint(2**31, ())) for name in self.drawn if options[name] is None}
        if "fan_in_fan_out" in known:
            options["fan_in_fan_out"] = is_transposed(model)
        return kind(task_type="CAUSAL_LM", **{name: value for name, value in options.items() if name in known})

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the options; where tied weights train whole, so that they stay tied."""
        options = {field.name: deepcopy(getattr(self, field.name)) for field in fields(self)}
        if tied := self._tied_whole(model):
            options |= {"ensure_weight_tying": True, "modules_to_save": tied}
        return options

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        """Return the options that depend on the model: inputs and outputs of each target; and on the run's length."""
        return {}

    def _tell(self, option: str, value: int) -> int:
        """Say which value was fitted to the model; `plan` shows it too."""
        log.info("%s: %s is %d, fitted to the dimensions of the targets", self.name, option, value)
        return value

    def _chosen(self, model: PreTrainedModel) -> list[str]:
        excluded = self._excluded(model) if self.target_modules == "all-linear" else self.exclude_modules
        return chosen(model, self.target_modules, excluded, self.layers_to_transform)

    def _excluded(self, model: PreTrainedModel) -> Names:
        """Return what all-linear leaves out: as asked, and what no adapter can reach."""
        endings = bypassed(model)
        if not endings:
            return self.exclude_modules
        log.info("%s: all-linear leaves out %s, which the model reads without calling", self.name, ", ".join(endings))
        return beside(self.exclude_modules, endings)

    def _refused(self, error: ValueError) -> Problem:
        fix = "name the layers to adapt, as target_modules: [q_proj, v_proj]"
        return Problem("peft cannot adapt these targets", str(error), fix, ("adapter", self.name, "target_modules"))

    def _problem(self, option: str, what: str) -> Problem:
        return Problem(what, "it would have no effect, or nothing would train", path=("adapter", self.name, option))

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        """Yield each option that does not fit the model, and what is wrong with it."""
        targets = {name: getattr(self, name) for name in ("target_modules", "exclude_modules", "modules_to_save")}
        return unmatched(model, targets, self.layers_to_transform, {})

    def _whole(self, model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
        """Return the modules that train whole, with their names: those that peft takes."""
        ends = tuple(self.modules_to_save or ())
        return [(name, module) for name, module in model.named_modules() if name.endswith(ends)] if ends else []

    def _quantised(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        for name, module in self._whole(model):
            if not all(weight.is_floating_point() for weight in module.parameters()):
                yield "modules_to_save", f"`{name}` is quantised, and such weights take no gradient"

    def _tied_whole(self, model: PreTrainedModel) -> list[str] | None:
        """Return the names of what trains whole where a head that shares its weight with embeddings is among it.

        The pair goes by the head's name: peft ties embeddings to it in every family, but knows them by few names.
        """
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        whole = self._whole(model)
        pair = [module for _, module in whole if module in (embeddings, head)]
        if not pair or head is None or embeddings.weight is not head.weight:
            return None
        named = {name for name, module in model.named_modules() if module is head}
        return sorted(named | {name for name, module in whole if module not in pair})


def is_transposed(model: PreTrainedModel) -> bool:
    """Say whether a model has GPT-2's layers, which keep [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _without_memory(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Let a skeleton's adapter be a skeleton too: peft makes its matrices on the CPU."""
    return torch.device("meta") if model.device.type == "meta" else nullcontext()


@contextmanager
def _drawing_from(rng: torch.Generator) -> Iterator[None]:
    """Let torch's global generators, from which peft draws, follow `rng` for a while."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

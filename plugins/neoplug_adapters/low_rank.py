"""What LoRA and DoRA share: peft's options for low-rank matrices, checked, and a start that follows the run's seed.

Peft itself takes a negative rank, a dropout of 2 and targets that do not exist, so everything is checked here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch

from neoplug.errors import Problem, RecipeError
from neoplug.hookspecs import hookimpl
from neoplug_adapters.companions import key_of, quantiser
from neoplug_adapters.targets import Names, bypassed, passed_by, unmatched

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from neoplug.recipe import Recipe

log = logging.getLogger("neoplug")
STARTS = (True, "gaussian", "orthogonal")  # initialisations that leave the base as it is
VARIANTS = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga", "mica")  # peft's others: adapters of their own here


@dataclass(eq=False)
class LowRank:
    """W + scale B A with trained A [r, in] and B [out, r]. Options have peft's names and meaning."""

    r: int = 8  # the rank, above 0; scale is lora_alpha / r
    lora_alpha: int = 16  # peft's default is 8 at r = 8; 2 r is the usual choice
    lora_dropout: float = 0.0  # in [0, 1), on what A reads
    target_modules: str | list[str] = "all-linear"  # that (not the head), name endings, or a regex of names
    exclude_modules: str | list[str] | None = None  # taken out of the targets again
    layers_to_transform: int | list[int] | None = None  # layers, counted from 0; target_modules must be a list
    rank_pattern: dict[str, int] = field(default_factory=dict)  # module name or regex -> its own r
    alpha_pattern: dict[str, int] = field(default_factory=dict)  # module name or regex -> its own lora_alpha
    modules_to_save: list[str] | None = None  # name endings of modules that train whole; tied weights stay tied
    bias: Literal["none", "all", "lora_only"] = "none"  # which biases of the base train too
    use_rslora: bool = False  # scale is lora_alpha / sqrt(r)
    init_lora_weights: bool | str = True  # true (A uniform, B zero), gaussian (A normal, B zero), orthogonal (even r)
    use_dora: bool = False  # fixed by the plugin: lora false, dora true

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_start()
        self._check_regexes()
        if not self.target_modules:
            raise ValueError("target_modules is empty, so nothing would train; all-linear takes every linear layer")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules to be a list of names, as [q_proj, v_proj]")

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
        if start not in STARTS:
            raise ValueError(f"init_lora_weights is {start}, but must be true, gaussian or orthogonal")
        odd = [r for r in (self.r, *self.rank_pattern.values()) if r % 2]
        if start == "orthogonal" and odd:
            raise ValueError(f"init_lora_weights is orthogonal, which needs an even r, but r is {odd[0]}")

    def _check_regexes(self) -> None:
        wholes = {"target_modules": self.target_modules, "exclude_modules": self.exclude_modules}
        found = {name: [whole] for name, whole in wholes.items() if isinstance(whole, str)}
        for name, regexes in {**found, "rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}.items():
            for regex in regexes:
                try:
                    re.compile(regex)
                except re.error as error:
                    raise ValueError(f"{name} has `{regex}`, which is no regular expression: {error}") from error

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse an initialisation that quantised layers cannot take."""
        loader = quantiser(recipe.student.load)
        if self.init_lora_weights != "orthogonal" or loader is None:
            return []
        return [
            Problem(
                f"init_lora_weights: orthogonal cannot stand on a student loaded by `{loader}`",
                "peft gives the new matrices the integer type of the quantised weights, which takes no gradient",
                "leave init_lora_weights out, or load the student unquantised",
                ("adapter", key_of(self.name, recipe.adapter) or self.name, "init_lora_weights"),
            )
        ]

    @hookimpl
    def add_adapter(self, model: PreTrainedModel, rng: torch.Generator) -> torch.nn.Module:
        """Return the PeftModel. Same seed, same A and B; torch's own generators are left as they were.

        Raises RecipeError where a name in the options matches no module.
        """
        from peft import get_peft_model

        from neoplug.models.quiet import quiet_peft

        wrong = [*self._unmatched(model), *self._quantised(model)]
        problems = [self._problem(option, what) for option, what in wrong]
        if problems:
            raise RecipeError(problems)
        try:
            with _drawing_from(rng), quiet_peft(), _without_memory(model):
                config = self._config(model)
                adapted = get_peft_model(model, config)  # which completes the configuration
        except ValueError as error:  # a target of a kind that peft cannot adapt, or all of them excluded
            raise RecipeError([self._refused(error)]) from error
        if experts := passed_by(adapted, config.target_parameters):
            log.info("%s passes by %d weights of experts, which are no linear layers", self.name, experts)
        return adapted

    def _refused(self, error: ValueError) -> Problem:
        fix = "name the layers to adapt, as target_modules: [q_proj, v_proj]"
        return Problem("peft cannot adapt these targets", str(error), fix, ("adapter", self.name, "target_modules"))

    def _unmatched(self, model: PreTrainedModel) -> Iterator[tuple[str, str]]:
        targets = {"target_modules": self.target_modules, "exclude_modules": self.exclude_modules}
        targets["modules_to_save"] = self.modules_to_save
        patterns = {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        return unmatched(model, targets, self.layers_to_transform, patterns)

    def _whole(self, model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
        """Return the modules that train whole, with their names: those that peft takes."""
        ends = tuple(self.modules_to_save or ())
        return [(name, module) for name, module in model.named_modules() if name.endswith(ends)]

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

    def _problem(self, option: str, what: str) -> Problem:
        return Problem(what, "it would have no effect, or nothing would train", path=("adapter", self.name, option))

    @property
    def name(self) -> str:
        """The plugin's own name."""
        return "dora" if self.use_dora else "lora"

    def _excluded(self, model: PreTrainedModel) -> Names:
        """Return what all-linear leaves out: as asked, and what no adapter can reach."""
        endings = bypassed(model)
        if not endings:
            return self.exclude_modules
        log.info("%s: all-linear leaves out %s, which the model reads without calling", self.name, ", ".join(endings))
        if isinstance(self.exclude_modules, str):
            return "|".join([f"(?:{self.exclude_modules})", *(rf".*\.{re.escape(ending)}" for ending in endings)])
        return [*(self.exclude_modules or []), *endings]

    def _config(self, model: PreTrainedModel) -> LoraConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        options: dict[str, Any] = {name: deepcopy(getattr(self, name)) for name in LowRank.__dataclass_fields__}
        if tied := self._tied_whole(model):
            options |= {"ensure_weight_tying": True, "modules_to_save": tied}
        if self.target_modules == "all-linear":
            options["exclude_modules"] = self._excluded(model)
        transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's layers
        return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=transposed, **options)


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

"""Conformance tests of probes, on two small random models and held-out documents.

from neoplug.testing import check_probe

def test_mine():
    check_probe(Mine())
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from neoplug.data.batch import Batch, Document, collate
from neoplug.evaluation.probes import probe
from neoplug.models.language_model import LanguageModel
from neoplug.models.quiet import quiet_peft
from neoplug.models.verify import language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.testing.families import random_model, tokenizer
from neoplug.testing.hooks import global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, properties_of
from neoplug.testing.small_model import TEXT

LENGTHS = (5, 24, 12, 9, 30, 17)  # tokens of the held-out documents
TOLERANCE = 1e-3  # of numbers that are computed in another order


def check_probe(probe: Any) -> None:
    """Test every property of probes that implement `on_evaluate`.

    Raises AssertionError for a property that does not hold.
    """
    PROBE.hold(probe, 0)


class ProbeProperties:
    """The properties of probes: each method without underscore, which raises Broken where it does not hold."""

    def numbers(self, plugin: Any) -> None:
        """It returns what JSON can hold, without NaN and infinities, also where there is no answer token."""
        for batches in (self._batches(), [collate([Document(np.arange(3, 9), np.zeros(6, bool), 0)])]):
            found = self._found(plugin, self._student, self._teacher, batches)
            for path, number in _leaves(found):
                if isinstance(number, float) and not math.isfinite(number):
                    raise Broken(f"`{path}` is {number}; where there is no value, return None")
            json.dumps(found, allow_nan=False)

    def untouched(self, plugin: Any) -> None:
        """It changes neither the models, their modes and hooks, nor the batches, nor the global generators."""
        student, teacher, batches = self._student, self._teacher, self._batches()
        models = student, teacher
        before, ids = [_state(model) for model in models], [batch.input_ids.clone() for batch in batches]
        hooked = [_hooks(model) for model in models]
        with global_seeds(0):
            generator = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
            self._found(plugin, student, teacher, batches)
            drawn = torch.equal(generator[0], torch.random.get_rng_state())
            if not drawn or not np.array_equal(generator[1], np.random.get_state()[1]):  # type: ignore[index]
                raise Broken("it draws from a global generator: make one of its own, with a seed")
        for model, (modes, weights) in zip(models, before, strict=True):
            now = _state(model)
            if now[0] != modes:
                raise Broken("it leaves a model in another mode, or with other trainable parameters")
            if any(not torch.equal(now[1][name], weight) for name, weight in weights.items()):
                raise Broken("it changes the weights of a model")
        if [_hooks(model) for model in models] != hooked:
            raise Broken("it leaves a hook on a module of a model")
        if any(not torch.equal(batch.input_ids, of_batch) for batch, of_batch in zip(batches, ids, strict=True)):
            raise Broken("it changes the held-out batches")

    def repeated(self, plugin: Any) -> None:
        """Evaluated again, it returns the same."""
        found = []
        for number in range(2):
            with global_seeds(number):
                found.append(self._found(plugin, self._student, self._teacher, self._batches()))
        if found[0] != found[1]:
            raise Broken(f"it returns {found[1]} after {found[0]}")

    def batches(self, plugin: Any) -> None:
        """It returns the same however the documents are put into batches."""
        student, teacher = self._student, self._teacher
        together, alone = (self._found(plugin, student, teacher, self._batches(size)) for size in (6, 1))
        _compare(together, alone, "with each document in a batch of its own")

    def without_teacher(self, plugin: Any) -> None:
        """It evaluates a model for which there is no teacher: an arm without one, and the teacher itself."""
        for model in (self._student, self._teacher):
            json.dumps(self._found(plugin, model, None, self._batches()), allow_nan=False)

    def virtual_tokens(self, plugin: Any) -> None:
        """It counts the text's tokens alone where a prompt method adds virtual tokens."""
        models, teacher = copy.deepcopy(self._with_and_without_prompt), self._teacher
        plain, prompted = (self._found(plugin, model, teacher, self._batches()) for model in models)
        _compare(plain, prompted, "with virtual tokens that no token attends to")

    @property
    def _student(self) -> LanguageModel:
        return copy.deepcopy(self._models[0])

    @property
    def _teacher(self) -> LanguageModel:
        return copy.deepcopy(self._models[1])

    @cached_property
    def _models(self) -> list[LanguageModel]:
        """Two models, of which each property has a copy."""
        return [_language_model(random_model("llama", seed=seed)) for seed in (1, 2)]

    @cached_property
    def _with_and_without_prompt(self) -> list[LanguageModel]:
        """A model without attention, so that virtual tokens change nothing, without and with these."""
        from peft import PromptTuningConfig, get_peft_model

        models = [random_model("llama", seed=1) for _ in range(2)]
        for model in models:
            for name, weight in model.named_parameters():
                if "o_proj" in name:
                    weight.zero_()
        with quiet_peft(), torch.random.fork_rng():
            models[1] = get_peft_model(models[1], PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
        return [_language_model(model.eval()) for model in models]

    def _batches(self, size: int = 2) -> list[Batch]:
        """Return the held-out documents in batches of this size."""
        ids = tokenizer()(TEXT)["input_ids"]
        documents = []
        for number, length in enumerate(LENGTHS):
            first = sum(LENGTHS[:number])
            documents.append(Document(np.array(ids[first : first + length]), np.arange(length) > 1, number))
        return [collate(documents[first : first + size]) for first in range(0, len(documents), size)]

    def _found(self, plugin: Any, model: LanguageModel, teacher: LanguageModel | None, batches: Sequence[Batch]) -> Any:
        """Return what the probe returns of a model, which is loaded before, as in a run.

        Raises TypeError where it has no `on_evaluate`.
        """
        if hook(plugin, "on_evaluate") is None:
            raise TypeError(f"{type(plugin).__name__} has no `on_evaluate`")
        plugins = Plugins({"probes": {"probe": plugin}})
        for loaded, role in ((teacher, "teacher"), (model, "student")):
            if loaded is not None:
                plugins.each("after_load", model=_unadapted(loaded.module), role=role)
        return probe(plugins, model, teacher, batches, tokenizer())["probe"]


PROBE = Kit("probe", {}, once=properties_of(ProbeProperties()))


def _language_model(module: Any) -> LanguageModel:
    return language_model(module, "lm_head", Vocabulary(module.config.vocab_size))


def _unadapted(module: Any) -> Any:
    """Return the transformers model in a model of peft, or the model itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _hooks(model: LanguageModel) -> list[int]:
    """Return how many hooks the forward pass of each module has."""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules()]


def _state(model: LanguageModel) -> tuple[list[bool], dict[str, torch.Tensor]]:
    """Return the modes of the modules with the trainable parameters, and copies of the weights."""
    modes = [module.training for module in model.module.modules()]
    trained = [parameter.requires_grad for parameter in model.module.parameters()]
    return modes + trained, {name: weight.clone() for name, weight in model.module.state_dict().items()}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of what is neither a map nor a list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def _compare(one: Any, other: Any, how: str) -> None:
    """Raise Broken where two results differ by more than rounding."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    if first.keys() != second.keys():
        raise Broken(f"it returns other numbers {how}, as `{min(first.keys() ^ second.keys())}`")
    for path, value in first.items():
        found = second[path]
        close = (
            isinstance(value, float)
            and isinstance(found, float)
            and math.isclose(value, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        )
        if not close and value != found:
            raise Broken(f"`{path}` is {found} {how}, and {value} without")

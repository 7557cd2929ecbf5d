"""A small model on which the conformance tests of adapters train: a random Llama of two layers, or any other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neoplug.data.batch import Batch, Document, collate
from neoplug.models.quiet import quiet
from neoplug.testing.families import configuration, random_model, tokenizer
from neoplug.testing.hooks import answer
from neoplug.testing.loss_examples import hook

STEPS = 6  # of the longest training
SIZES = {"hidden_size": 48, "intermediate_size": 96, "head_dim": 12, "tie_word_embeddings": True}
TEXT = (
    "Assignment statements are used to (re)bind names to values and to modify attributes or items of mutable objects. "
    "An assignment statement evaluates the expression list and assigns the single resulting object to each target."
)


class SmallModel:
    """A base, text to train on, and what a run does with an adapter on it.

    folder  of a model of transformers with its tokenizer; None: a random Llama of two layers
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @cached_property
    def base(self) -> Any:
        """Return the model without adapter, frozen, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        if self.folder is None:
            return random_model("llama", seed=1, **SIZES)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @cached_property
    def text(self) -> Tensor:
        """Return [6, 16] int64: documents of 16 tokens."""
        from transformers import AutoTokenizer

        own = tokenizer() if self.folder is None else AutoTokenizer.from_pretrained(self.folder)
        ids = own(" ".join([TEXT] * 3))["input_ids"]
        return torch.tensor(ids[:96]).reshape(6, 16)

    @cached_property
    def batches(self) -> list[Batch]:
        """Return three batches of two documents."""
        scored = np.ones(16, bool)
        documents = [Document(ids.numpy(), scored, number) for number, ids in enumerate(self.text)]
        return [collate(documents[first : first + 2]) for first in (0, 2, 4)]

    def model(self) -> Any:
        """Return a copy of the base."""
        return copy.deepcopy(self.base)

    def skeleton(self) -> Any:
        """Return the base on the meta device."""
        from transformers import AutoModelForCausalLM

        config = configuration("llama", **SIZES) if self.folder is None else self.base.config
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).requires_grad_(False)

    def adapted(
        self,
        adapter: Any,
        model: Any = None,
        *,
        seed: int = 0,
        steps: int = STEPS,
        batches: Sequence[Batch] | None = None,
        data: bool = True,
    ) -> Any:
        """Return a model with the adapter, as a run adds it.

        model    None: a copy of the base
        steps    of the whole training
        batches  of the data; None: all three
        data     False: without data, as in a plan

        Raises TypeError where the plugin has no `add_adapter`.
        """
        if hook(adapter, "add_adapter") is None:
            raise TypeError(f"{type(adapter).__name__} has no `add_adapter`")
        model = self.model() if model is None else model
        given = iter(batches or self.batches) if data and model.device.type != "meta" else None
        rng = torch.Generator().manual_seed(seed)
        return answer(adapter, "add_adapter", model=model, batches=given, total_steps=steps, rng=rng)

    def loss(self, model: Any, ids: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of these texts, [B, L]; without them, of the first two documents."""
        ids = self.text[:2] if ids is None else ids
        # Virtual tokens add columns before those of the text.
        predicted = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] : -1]
        return cross_entropy(predicted.flatten(0, 1).float(), ids[:, 1:].flatten())

    def logits(self, model: Any) -> Tensor:
        """Return the logits of the first two documents, [2, 16, V]."""
        ids = self.text[:2]
        with torch.no_grad():
            found: Tensor = model.eval()(input_ids=ids).logits[:, -ids.shape[1] :]
        return found

    def train(
        self, adapter: Any, model: Any, optimizer: torch.optim.Optimizer | None = None, first: int = 0, last: int = 2
    ) -> None:
        """Train as the loop does: with the plugin's penalty in the objective, and `on_step_end` after each step."""
        optimizer = optimizer or optimizer_of(model)
        model.train()
        for step in range(first, last):
            torch.manual_seed(step)
            progress, loss = step / (STEPS - 1), self.loss(model)
            if (penalty := answer(adapter, "penalty", model=model, progress=progress)) is not None:
                loss = loss + penalty
            torch.autograd.backward(loss)
            optimizer.step()
            answer(adapter, "on_step_end", step=step + 1, progress=progress, model=model, metrics={}, name="adapter")
            optimizer.zero_grad()


def quietly(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the property without the warnings that peft and transformers give of their own code."""

    @wraps(check)
    def checked(plugin: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(peft|transformers)\.")
            warnings.filterwarnings("ignore", ".* will be removed in v", FutureWarning)  # reported where it is called
            check(plugin)

    return checked


def optimizer_of(model: nn.Module, rate: float = 1e-2) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, weight_decay=0.1)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trains_everything(model: nn.Module) -> bool:
    """Return whether every parameter is trainable."""
    return all(parameter.requires_grad for parameter in model.parameters())


def same(one: Tensor | None, other: Tensor | None, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Return whether two gradients are the same within tolerances, or both absent."""
    return one is other or (one is not None and other is not None and torch.allclose(one, other, rtol, atol))

"""Forgetting: the drift of the student from its untrained base on other text, as of what the base was trained on.

    forward_kl            mean over tokens of KL(base, student), in nats
    cross_entropy         mean over tokens of -ln q(token), in nats
    cross_entropy_change  that of the student less that of the base; above 0 it predicts the text worse than before

The text is tokenised without a chat template and cut into windows of `max_length` tokens, of which each token but the
first is predicted; where the tokenizer begins texts with a token, each window begins with it.

The base is the student with its adapter of peft switched off. An adapter that changed the base cannot be switched off:
the tokens' probabilities then differ from those before training. In this case, and without an adapter of peft,
`forward_kl` is None, and the change is from the evaluation before training. A model that is no student, as the teacher,
has `cross_entropy` alone; so has a student that was trained without an adapter and is evaluated later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from neoplug import Batch, Document, Problem, RunError, collate, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Predict = Callable[[nn.Module, Batch], Iterator[tuple[Tensor, Tensor]]]

SAME = 1e-2  # nats, mean over tokens: log-probabilities of the base may differ so far, as its weights may be rounded


@dataclass(eq=False)
class Forgetting:
    """Drift from the untrained student on other text: forward KL and the change of cross-entropy."""

    source: Path  # a text file, in UTF-8
    max_length: int = 256  # tokens of a window, at least 2
    limit: int = 32  # only the first windows

    def __post_init__(self) -> None:
        for name, least in (("max_length", 2), ("limit", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        # Student as loaded -> the names of its modules then. Weak, since the student is loaded again to compare it.
        self._loaded: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
        # Student as loaded -> [tokens] float64, the log-probabilities of the text's tokens before training.
        self._before: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
        self._restored: Tensor | None = None  # the same, from a checkpoint

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse a file without text."""
        try:
            text = self.source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return [Problem(f"{self.source} cannot be read as text", str(error), "name a text file in UTF-8")]
        return [] if text.strip() else [Problem(f"{self.source} has no text", fix="name a file with text")]

    @hookimpl
    def after_load(self, model: PreTrainedModel, role: Literal["teacher", "student"]) -> None:
        """Remember the student as it is without adapter."""
        if role == "student":
            self._loaded[model] = _names(model)

    @hookimpl
    def on_evaluate(
        self, model: nn.Module, predict: Predict, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, float | None]:
        """Return {forward_kl, cross_entropy, cross_entropy_change}, each None where there is no value.

        Raises RunError where `max_length` is more than the model has positions.
        """
        batches = [collate([window]) for window in self._windows(model, tokenizer)]
        student = next((part for part in model.modules() if part in self._loaded), None)
        if not batches:
            return {"forward_kl": None, "cross_entropy": None, "cross_entropy_change": None}
        if student is not None and hasattr(model, "disable_adapter"):
            tokens, base, divergence = _compared(model, batches, predict)
        else:
            tokens, base, divergence = torch.cat([_of_labels(predict(model, batch)) for batch in batches]), None, None
        before = None if student is None else self._before.get(student, self._restored)
        if model is student and self._loaded[student] == _names(model) and (before is None or before.equal(tokens)):
            self._before[student], base, divergence = tokens, tokens, 0.0  # nothing was trained yet
        elif before is not None and (base is None or (base - before).abs().mean() > SAME):
            base, divergence = before, None
        change = None if base is None else (base - tokens).mean().item()
        return {"forward_kl": divergence, "cross_entropy": -tokens.mean().item(), "cross_entropy_change": change}

    def state_dict(self) -> dict[str, Any]:
        """Return the log-probabilities before training, which a resumed run does not measure again."""
        return {"before": next(iter(self._before.values()), self._restored)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._restored = state["before"]

    def _windows(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
        """Return the windows of the text, each of at least two tokens."""
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None) or self.max_length
        if self.max_length > positions:
            raise RunError(
                f"windows of {self.max_length} tokens are too long: the model was made for {positions}\n"
                f"fix: set max_length of `forgetting` to {positions} or less"
            )
        text = self.source.read_text(encoding="utf-8")
        ids, whole = (
            tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"] for special in (False, True)
        )
        begin = whole[:1] if whole[:1] == [tokenizer.bos_token_id] and whole[1:2] == ids[:1] else []
        size = self.max_length - len(begin)
        windows = [np.array([*begin, *ids[at : at + size]], np.int64) for at in range(0, self.limit * size, size)]
        return [Document(window, np.ones(len(window), bool), 0) for window in windows if len(window) > 1]


def _compared(model: Any, batches: list[Batch], predict: Predict) -> tuple[Tensor, Tensor, float]:
    """Return the log-probabilities [tokens] of the text with and without adapter, and the mean KL(without, with)."""
    tokens, base, divergences = [], [], []
    for batch in batches:
        with _adapter_off(model):
            unadapted = [(log_p.clone(), labels) for log_p, labels in predict(model, batch)]
        base.append(_of_labels(unadapted))
        adapted = predict(model, batch)
        for (log_p, _), (log_q, labels) in zip(unadapted, adapted, strict=True):
            tokens.append(_of_labels([(log_q, labels)]))
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).double().cpu())
    return torch.cat(tokens), torch.cat(base), torch.cat(divergences).mean().item()


@contextmanager
def _adapter_off(model: Any) -> Iterator[None]:
    """Switch an adapter of peft off inside the block; peft then marks all its weights as trainable, which is undone."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, trains in trained:
            parameter.requires_grad_(trains)


def _of_labels(predictions: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the log-probabilities of the tokens of a text, [tokens] float64 on the CPU."""
    return torch.cat([log_q.gather(-1, labels[:, None])[:, 0].double().cpu() for log_q, labels in predictions])


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]

"""Importance of a decoder's layers, measured on text. L tokens of a document, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def block_influence(model: PreTrainedModel, layers: Sequence[nn.Module], documents: Iterable[Tensor]) -> list[float]:
    """Return 1 - mean over tokens of cos(input, output), for each layer (ShortGPT, arXiv 2403.03853).

    documents  each [1, L]
    """
    sums, tokens = torch.zeros(len(layers), dtype=torch.float64), 0

    def hook_of(number: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            similarity = cosine_similarity(_input_states(args, kwargs), _output_states(output), dim=-1)
            sums[number] += similarity.double().sum()

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_hook(hook_of(number), with_kwargs=True))
        for document in documents:
            model.base_model(input_ids=document, use_cache=False)
            tokens += document.numel()
    return (1 - sums / tokens).tolist()


@torch.no_grad()
def greedy_removal(
    model: PreTrainedModel, layers: Sequence[nn.Module], documents: Iterable[Tensor], count: int
) -> Iterator[tuple[int, float]]:
    """Remove `count` layers one by one; yield (removed layer, forward KL from the whole to the pruned model).

    Each is the layer whose removal, in addition to those before, leaves the KL smallest, in nats per token.

    documents  each [1, L]; the whole model's log-probabilities [L, V] of all of them are kept in memory
    """
    extras: dict[nn.Module, tuple | None] = {}  # what a layer returns in addition to hidden states

    def keep_extras(layer: nn.Module, _: tuple, output: Any) -> None:
        extras[layer] = output[1:] if isinstance(output, tuple) else None

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(keep_extras))
        references = [(document, _log_probabilities(model, document)) for document in documents]
    removed: set[int] = set()
    for _ in range(count):
        costs = {}
        for number in set(range(len(layers))) - removed:
            with _skipping({layers[other]: extras[layers[other]] for other in removed | {number}}):
                costs[number] = _divergence(model, references)
        least = min(costs, key=lambda number: (costs[number], number))
        removed.add(least)
        yield least, costs[least]


def _divergence(model: PreTrainedModel, references: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the forward KL from the given log-probabilities to those of the model, in nats per token."""
    sums = [
        kl_div(_log_probabilities(model, document), log_p, reduction="sum", log_target=True)
        for document, log_p in references
    ]
    return float(sum(sums)) / sum(len(log_p) for _, log_p in references)


def _log_probabilities(model: PreTrainedModel, document: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=document, use_cache=False).logits
    return logits[0].log_softmax(-1)


@contextmanager
def _skipping(extras: Mapping[nn.Module, tuple | None]) -> Iterator[None]:
    """Replace layers by the identity on hidden states. extras: {layer: what it returns in addition to these}."""
    for layer, rest in extras.items():
        layer.forward = _identity(rest)
    try:
        yield
    finally:
        for layer in extras:
            del layer.forward


def _identity(rest: tuple | None) -> Callable[..., Any]:
    """Return a layer's forward that returns its input; `rest` is appended unless it is None."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = _input_states(args, kwargs)
        return states if rest is None else (states, *rest)

    return forward


def _input_states(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a layer is called with, [1, L, H]."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _output_states(output: Any) -> Tensor:
    """Return the hidden states that a layer returns, [1, L, H]."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states

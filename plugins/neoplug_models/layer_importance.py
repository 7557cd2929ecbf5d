"""Which of a decoder's layers matter, measured on text. n layers; L tokens of a document; V vocabulary."""

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
    """Return for each layer 1 - the mean over tokens of cos(what goes in, what comes out) (ShortGPT, arXiv 2403.03853).

    documents  each [1, L]
    """
    sums, tokens = torch.zeros(len(layers), dtype=torch.float64), 0

    def watch(number: int) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            sums[number] += cosine_similarity(_entering(args, kwargs), _leaving(output), dim=-1).double().sum()

        return note

    with ExitStack() as hooks:
        for number, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_hook(watch(number), with_kwargs=True))
        for document in documents:
            model.base_model(input_ids=document, use_cache=False)
            tokens += document.numel()
    return (1 - sums / tokens).tolist()


@torch.no_grad()
def least_missed(
    model: PreTrainedModel, layers: Sequence[nn.Module], documents: Iterable[Tensor], count: int
) -> Iterator[tuple[int, float]]:
    """Yield (layer, forward KL without it and those before it, nats per token), `count` times.

    Each is the layer whose removal, after that of the layers already removed, changes the model's own distribution
    least.

    documents  each [1, L]; the whole model's log-probabilities [L, V] are held for all of them
    """
    extras: dict[nn.Module, tuple | None] = {}  # what a layer returns in addition to hidden states

    def note(layer: nn.Module, _: tuple, output: Any) -> None:
        extras[layer] = output[1:] if isinstance(output, tuple) else None

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(note))
        wholes = [(document, _log_probabilities(model, document)) for document in documents]
    gone: set[int] = set()
    for _ in range(count):
        costs = {}
        for number in set(range(len(layers))) - gone:
            with _without({layers[other]: extras[layers[other]] for other in gone | {number}}):
                costs[number] = _divergence(model, wholes)
        least = min(costs, key=lambda number: (costs[number], number))
        gone.add(least)
        yield least, costs[least]


def _divergence(model: PreTrainedModel, wholes: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the forward KL from the whole model to what it is now, nats per token."""
    found = [
        kl_div(_log_probabilities(model, document), whole, reduction="sum", log_target=True)
        for document, whole in wholes
    ]
    return float(sum(found)) / sum(len(whole) for _, whole in wholes)


def _log_probabilities(model: PreTrainedModel, document: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=document, use_cache=False).logits
    return logits[0].log_softmax(-1)


@contextmanager
def _without(extras: Mapping[nn.Module, tuple | None]) -> Iterator[None]:
    """Let these layers hand on what they are given, with what else they return."""
    for layer, rest in extras.items():
        layer.forward = _handing_on(rest)
    try:
        yield
    finally:
        for layer in extras:
            del layer.forward


def _handing_on(rest: tuple | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        states = _entering(args, kwargs)
        return states if rest is None else (states, *rest)

    return forward


def _entering(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a layer is called with, [1, L, H]."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _leaving(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states

"""Statistics of the training data for initialisations that depend on data: covariances of inputs, and gradients.

Documents run through the model one by one, so the statistics do not depend on padding or packing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from neoplug import UsageError
from neoplug_adapters.low_rank import lora_layers

if TYPE_CHECKING:
    from neoplug import Batch


def covariances(adapted: Any, batches: Iterable[Batch] | None, count: int, name: str) -> dict[str, Tensor]:
    """Return the mean of x x^T over each target's inputs x: {name in the base: [in, in] float32}.

    Raises UsageError where there are no data; `count` micro-batches are read, `name` is the adapter's.
    """
    sums: dict[str, Tensor] = {}
    tokens = 0

    def add_inputs_of(target: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            states = inputs[0].detach().flatten(0, -2).float()
            sums[target] = sums.get(target, 0) + states.T @ states

        return hook

    handles = [layer.register_forward_pre_hook(add_inputs_of(target)) for target, layer in lora_layers(adapted)]
    with torch.no_grad():
        for ids, _ in documents(adapted, batches, count, name):
            adapted(input_ids=ids, use_cache=False)
            tokens += ids.numel()
    for handle in handles:
        handle.remove()
    return {target: total / tokens for target, total in sums.items()}


def gradients(adapted: Any, batches: Iterable[Batch] | None, count: int, name: str) -> dict[str, Tensor]:
    """Return the gradient of the answer tokens' mean cross-entropy: {target's name in the base: [out, in] float32}.

    Raises UsageError where there are no data; `count` micro-batches are read, `name` is the adapter's.
    """
    transposed = {target for target, layer in lora_layers(adapted) if layer.fan_in_fan_out}
    weights = {target: layer.get_base_layer().weight for target, layer in lora_layers(adapted)}
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    answers = 0
    for weight in weights.values():
        weight.requires_grad_(True)
    for ids, positions in documents(adapted, batches, count, name):
        logits = adapted(input_ids=ids, use_cache=False).logits[0, positions]
        cross_entropy(logits.float(), ids[0, positions + 1], reduction="sum").backward()
        answers += len(positions)
    summed = {target: weight.grad.T if target in transposed else weight.grad for target, weight in weights.items()}
    found = {target: gradient.float() / max(1, answers) for target, gradient in summed.items()}
    for weight in weights.values():
        weight.requires_grad_(False)
        weight.grad = None
    for parameter in trained:
        parameter.requires_grad_(True)
    return found


def documents(adapted: Any, batches: Iterable[Batch] | None, count: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the documents of `count` micro-batches: input_ids [1, L], and positions [n] that predict answer tokens.

    Raises UsageError where there are no data.
    """
    if batches is None:
        raise UsageError(f"{name} is initialised from training data, and there are none here\nfix: name `lora` instead")
    training, device = adapted.training, adapted.device
    adapted.eval()
    for batch in islice(batches, count):
        start = 0
        for length in batch.lengths:
            inside = batch.positions[(batch.positions >= start) & (batch.positions < start + length)] - start
            yield batch.input_ids[start : start + length][None].to(device), inside.to(device)
            start += length
    adapted.train(training)

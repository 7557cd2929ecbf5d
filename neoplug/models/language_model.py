"""A causal language model in two parts: the hidden states that predict a batch's answer tokens, and the output head.

N answer tokens of a batch, H hidden size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import FULL_ATTENTION, Batch, Layout, Windows
from neoplug.errors import RunError
from neoplug.models.head import Head
from neoplug.models.recorder import decoder_layers, recording, recording_layers


@dataclass(eq=False)
class LanguageModel:
    """A causal language model in two parts, hidden states and output head, which the objective evaluates separately.

    module        the transformers or peft model, its head in place
    head          its output head as a function
    device        where its inputs must be
    layout        how a batch is laid out for it; the first of `verify.LAYOUTS` that isolates documents
    windows       how many tokens each kind of its attention layers attends to; a block mask encodes them
    autocast      the autocast dtype; None: no autocast, the model computes in the dtype of its weights
    pad_token_id  fills padded rows
    """

    module: nn.Module
    head: Head
    device: torch.device
    layout: Layout = "padded"
    windows: Windows = field(default_factory=lambda: FULL_ATTENTION)
    autocast: torch.dtype | None = None
    pad_token_id: int = 0

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, H] that predict the batch's answer tokens."""
        return self._record(*self._laid_out(batch))

    def states(self, batch: Batch, layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the hidden states [N, H] of layers that predict the batch's answer tokens, by the given numbers.

        layers  as transformers numbers its `hidden_states`: 0 is the input of the first layer, i the output of the
                i-th; the last one is what the output head reads, after the final norm. Negative from the end

        Raises:
            RunError: the model does not have one of the layers.
        """
        decoder = decoder_layers(self.module)
        last = len(decoder)
        numbers = {layer: _validated(layer, last) for layer in layers}
        inputs, positions = self._laid_out(batch)
        inner = {*numbers.values()} - {last}
        with recording_layers(decoder, inner, positions, inputs["input_ids"].shape[1]) as recorded:
            recorded[last] = self._record(inputs, positions)
        return {layer: recorded[number] for layer, number in numbers.items()}

    def autocast_context(self) -> torch.autocast:
        """Return the autocast context for a forward pass; disabled where `autocast` is None."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _laid_out(self, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """Return the arguments of the module for a batch, and the positions that predict its answer tokens."""
        dtype = self.autocast or next(p.dtype for p in self.module.parameters() if p.is_floating_point())
        return batch.layout(self.layout, self.pad_token_id, self.windows, dtype)

    def _record(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        """Run the model on a batch that is laid out; return the hidden states at `positions`, [N, H]."""
        with self.autocast_context(), recording(self.head.module, positions, inputs["input_ids"].shape[1]) as recorded:
            self.module(**inputs)
        return recorded[0]


def _validated(layer: int, last: int) -> int:
    """Return the number of a layer from 0 to `last`, the last one."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not -last - 1 <= layer <= last:
        raise RunError(
            f"the model has no layer {layer!r}\n"
            f"why: its hidden states are numbered from 0, the embeddings, to {last}, what the output head reads, "
            f"or from the end, -1 to {-last - 1}\nfix: name one of these"
        )
    return layer % (last + 1)


def count_parameters(module: Any) -> int:
    """Return how many parameters a model has; transformers' own count includes all values of 4-bit weights."""
    count = getattr(module, "num_parameters", None)
    if count is None:
        return sum(int(parameter.numel()) for parameter in module.parameters())
    inside = getattr(count, "__self__", module)  # an adapter may wrap the model that counts
    counted = {id(parameter) for parameter in inside.parameters()}
    return int(count()) + sum(int(p.numel()) for p in module.parameters() if id(p) not in counted)

"""The student as its own teacher: its base, with the adapter off, or an average of its trained weights.

No second model is in memory: the student's own module is run in another state (`models.switched`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of trained weights, in float32; it starts at these weights.

        average <- decay average + (1 - decay) weight          after each optimizer step

    Source: Mean Teacher, Tarvainen and Valpola 2017, arXiv 1703.01780, without its lower decay in the first steps.

    values  the average by the names of the weights
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float = 0.0) -> None:
        self._weights = list(weights.values())
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.values: dict[str, Tensor] = {name: _copy(weight) for name, weight in weights.items()}

    @classmethod
    def of(cls, module: nn.Module, decay: float) -> Self:
        """Return the average of the trainable weights of a module."""
        return cls({name: weight for name, weight in module.named_parameters() if weight.requires_grad}, decay)

    def update(self) -> None:
        """Take the weights after a step into the average."""
        self._average(list(self.values.values()), self._weights, 1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the module the average as its weights inside the block; nothing is copied."""
        own = [weight.data for weight in self._weights]
        try:
            for weight, value in zip(self._weights, self.values.values(), strict=True):
                weight.data = value
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.data = value


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().clone(memory_format=torch.contiguous_format)

"""A model run in another state than the one in which it is trained: with its adapter off, or with other weights.

A switch is a function that returns a context: the state holds inside it, and the one before is restored on exit. The
model is not copied.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel

Switch = Callable[[], AbstractContextManager[None]]


def switched(model: LanguageModel, switch: Switch, *, changes_head: bool = True) -> LanguageModel:
    """Return the model as it is inside `switch`, in evaluation mode and without gradients; it shares all weights.

    changes_head  whether the output head may be another one inside the switch
    """
    head = SwitchedHead(**vars(model.head), switch=switch) if changes_head else model.head
    return replace(model, module=SwitchedModule(model.module, switch), head=head)


class SwitchedModule(nn.Module):
    """A module of transformers or peft whose forward pass and generation happen inside a switch.

    Each call sets the module to evaluation mode, and back to the mode that it was in; `train` and `eval` do nothing.
    """

    def __init__(self, module: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.module = module
        self.training = False
        self._switch = switch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the module inside the switch."""
        with self._switch(), evaluating(self.module):
            return self.module(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module generates inside the switch."""
        with self._switch(), evaluating(self.module):
            return self.module.generate(*args, **kwargs)  # type: ignore[operator]

    def train(self, mode: bool = True) -> "SwitchedModule":
        """Return the module unchanged: the mode of the shared module belongs to who trains it."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


@dataclass(eq=False)
class SwitchedHead(Head):
    """An output head whose logits are computed inside a switch."""

    switch: Switch = nullcontext

    def prepare_logits_fn(self) -> Callable[[Tensor], Tensor]:
        """Return a function, hidden states [n, H] -> logits [n, V], as of `Head`."""
        with self.switch():
            logits_of = super().prepare_logits_fn()

        def switched_logits_of(hidden: Tensor) -> Tensor:
            with self.switch():
                return logits_of(hidden)

        return switched_logits_of


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode inside the block, without gradients."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def adapter_off(module: nn.Module) -> Switch:
    """Return the switch that turns a module's adapter off; the module has peft's context `disable_adapter`.

    Peft marks all weights of the adapter as trainable when it turns it on again, also those that a plugin froze.
    """

    @contextmanager
    def switch() -> Iterator[None]:
        parameters = list(module.parameters())  # others once the module is sharded
        trained = [parameter.requires_grad for parameter in parameters]
        try:
            with module.disable_adapter():  # type: ignore[operator]
                yield
        finally:
            for parameter, trains in zip(parameters, trained, strict=True):
                parameter.requires_grad_(trains)

    return switch

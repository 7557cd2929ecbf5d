"""The output head as a function: float32 logits over the shared vocabulary, a block of hidden states at a time.

n rows of a block, H hidden size, V shared vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from neoplug.errors import RunError
from neoplug.models.split_products import SplitProducts, has_kernel
from neoplug.models.vocabulary import Vocabulary

IDENTITY_ROWS = 256  # of the identity matrix that an adapted head is evaluated on at a time


class FrozenLinear(torch.autograd.Function):
    """Logits of a frozen head in float32, not rounded to the weight's dtype; the weight gets no gradient."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, storage: torch.UntypedStorage
    ) -> Tensor:
        """[n, H], [V, H], [V] -> [n, V] float32; a float32 weight's result is in `storage`, resized to fit."""
        ctx.save_for_backward(weight)
        ctx.dtype = hidden.dtype
        if weight.dtype == torch.float32:
            logits = weight.new_empty(0).set_(storage).resize_(len(hidden), len(weight))
            torch.mm(hidden.float(), weight.t(), out=logits)
        else:
            logits = torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=torch.float32)
        return logits if bias is None else logits.add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        """[n, V] -> [n, H]."""
        (weight,) = ctx.saved_tensors
        return (gradient.to(weight.dtype) @ weight).to(ctx.dtype), None, None, None


@dataclass(eq=False)
class Head:
    """The output head as a function: hidden states [n, H] -> float32 logits [n, V] over the shared vocabulary.

    module      the model's output embedding, or the module that an adapter replaced it with
    multiplier  factor of the model's logits (Granite, Cohere, Falcon-H1)
    cap         soft cap of the logits (Gemma): cap * tanh(logits / cap)
    dtype       the type that the model computes in
    """

    module: nn.Module
    vocabulary: Vocabulary
    multiplier: float = 1.0
    cap: float | None = None
    dtype: torch.dtype = torch.float32

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits [n, V] in float32, with a graph where gradients are enabled."""
        return self.prepare_logits_fn()(hidden)

    def prepare_logits_fn(self) -> Callable[[Tensor], Tensor]:
        """Return a function, hidden states [n, H] -> logits [n, V], for the blocks of one optimizer step.

        Where weights are frozen, the rows of the shared vocabulary are selected and converted to float32 once for all
        blocks; an adapter's weights are converted once too, so after the step the function is out of date.

        A call may overwrite what the previous call returned: blocks share one buffer, so that the allocator does not
        search for 64 MiB for each.
        """
        project = self._linear(self.module) if type(self.module) is nn.Linear else self._adapted()

        def logits_of(hidden: Tensor) -> Tensor:
            logits = project(hidden)
            if self.multiplier != 1.0:
                logits = logits * self.multiplier
            return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

        return logits_of

    @torch.no_grad()
    def effective_linear(self, hidden_size: int) -> nn.Linear:
        """Return the head, over all its rows, as a frozen linear layer on the CPU, without multiplier and cap.

        A linear layer is copied. Any other head, as a quantised or an adapted one, is evaluated on the identity matrix.

        Raises:
            RunError: the head is not linear.
        """
        module: Any = self.module
        weight, bias = (module.weight, module.bias) if type(module) is nn.Linear else self._as_matrix(hidden_size)
        linear = nn.Linear(hidden_size, len(weight), bias is not None, device="meta")
        parts = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        linear.load_state_dict({name: part.detach().cpu().clone() for name, part in parts.items()}, assign=True)
        return linear.requires_grad_(False)

    def _as_matrix(self, hidden_size: int) -> tuple[Tensor, Tensor | None]:
        """Return weight [rows, H] and bias [rows] of an adapted head, in float32 on the CPU."""
        project, device = self._adapted_over_all_rows(self._wide_weights()), next(self.module.parameters()).device
        bias = project(torch.zeros(1, hidden_size, device=device))[0]
        identity = torch.split(torch.eye(hidden_size, device=device), IDENTITY_ROWS)
        weight = torch.cat([(project(part) - bias).t().cpu() for part in identity], 1)
        states = torch.randn(8, hidden_size, generator=torch.Generator().manual_seed(0))
        expected, bias = project(states.to(device)).cpu(), bias.cpu()
        if not (states @ weight.t() + bias - expected).abs().max() <= 1e-3 * expected.abs().max():
            raise RunError(
                f"the teacher's output head, {type(self.module).__name__}, is not linear\n"
                "why: a cache stores hidden states, and a linear layer that turns them into logits\n"
                "fix: leave `teacher.cache` out: the teacher is then a model in memory"
            )
        return weight, bias if bias.any() else None

    def parameters(self) -> list[nn.Parameter]:
        """Return the head's trainable parameters: none for a frozen head."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        """Return the function of a head that is a linear layer, with or without trainable parameters."""
        weight, bias = module.weight, module.bias
        if self.parameters():

            def project(hidden: Tensor) -> Tensor:
                rows, rows_of_bias = self._rows(weight).float(), None if bias is None else self._rows(bias).float()
                return functional.linear(hidden.float(), rows, rows_of_bias)

            return self._in_16_bits(project)
        frozen, frozen_bias = self._rows(weight), self._rows(bias)
        if not has_kernel(weight.device):
            frozen = frozen.float()
        storage = frozen.new_empty(0, dtype=torch.float32).untyped_storage()
        return lambda hidden: FrozenLinear.apply(hidden, frozen, frozen_bias, storage)  # type: ignore[no-untyped-call]

    def _adapted(self) -> Callable[[Tensor], Tensor]:
        """Return the function of an adapted head; 16-bit weights become float32, so that logits are not rounded."""
        wide = self._wide_weights()
        project = self._in_16_bits(self._adapted_over_all_rows(wide), wide)

        def logits_of(hidden: Tensor) -> Tensor:
            shared: Tensor = self._rows(project(hidden).t()).t() * 1  # a copy, since the objective overwrites it
            return shared

        return logits_of

    def _in_16_bits(
        self, project: Callable[[Tensor], Tensor], wide: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Callable[[Tensor], Tensor]:
        """Return a head's function; where a model computes in bfloat16 on CUDA, its products are made of such ones.

        wide  name -> the float32 copy that `project` reads of a 16-bit weight
        """
        weights = dict(self.module.named_parameters())
        if self.dtype != torch.bfloat16 or not has_kernel(next(iter(weights.values())).device):
            return project
        copies = {id(copy): weights[name] for name, copy in wide.items() if weights[name].dtype == torch.bfloat16}
        return partial(SplitProducts([*weights.values(), *wide.values()], copies).call, project)

    def _wide_weights(self) -> dict[str, Tensor]:
        """Return float32 copies of the module's 16-bit weights by name."""
        narrow = (torch.float16, torch.bfloat16)
        return {name: weight.float() for name, weight in self.module.named_parameters() if weight.dtype in narrow}

    def _adapted_over_all_rows(self, wide: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the function of an adapted head with the weights `wide`: [n, H] -> float32 logits [n, rows]."""

        def project(hidden: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.module, dict(wide), (hidden.float(),))
            return logits.float()

        return project

    def _rows(self, values: Any) -> Any:
        """Return the rows (first dimension) of `values` that represent tokens of the shared vocabulary."""
        if values is None or self.vocabulary.size == len(values):
            return values
        if self.vocabulary.ids is None:
            return values[: self.vocabulary.size]
        return values.index_select(0, self.vocabulary.ids_on(values.device))

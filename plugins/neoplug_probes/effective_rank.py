"""The change of the weights, matrix by matrix: its effective rank, and the intruder dimensions that it causes.

    effective_rank       exp(-sum_i p_i ln p_i), p_i = s_i / sum_j s_j, for the singular values s of W' - W
    intruder_dimensions  of the k largest left singular vectors u of W', those with max_j |cos(u, v_j)| < epsilon, over
                         all left singular vectors v_j of W

W is the matrix [outputs, inputs] of a linear layer as it was loaded, W' the trained one with the adapter merged. Both
numbers are means over the matrices that changed, and `matrices` is their number. Not counted are changes no larger than
rounding, and layers with an adapter that no matrix represents; where none is left, as with prompt methods, both are
None. The adapter is not merged: a layer is evaluated on the rows of the identity matrix.

The effective rank lies between 1, all of the change in one direction, and its rank, the same in all. A matrix costs
three singular value decompositions: name few in `target_modules` for a large model.
Sources: Roy & Vetterli 2007, "The effective rank", definition 1; Shuttleworth et al. 2024, arXiv 2410.21228, definition
and algorithm 1, with k = 10 as in its code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neoplug import UsageError, adaptable_weights, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Function = Callable[[Tensor], Tensor]

NARROW = (torch.float16, torch.bfloat16)
ROUNDING = 2 * torch.finfo(torch.float32).eps  # of a merge in float32, relative to the weight's norm
NONLINEAR, ROUNDED = 1e-3, 1e-5  # errors up to which a layer is linear: relative to its change, and to its outputs


@dataclass(eq=False)
class EffectiveRank:
    """Effective rank of the change of the weights, and intruder dimensions."""

    target_modules: list[str] | None = None  # name endings, as [q_proj, v_proj]; left out: all of the decoder layers
    k: int = 10  # of the trained matrix's singular vectors, the largest, that may be intruders
    epsilon: float = 0.5  # cosine below which a singular vector is an intruder, in (0, 1)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, but must be at least 1")
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}, but must lie in (0, 1)")
        # Student as loaded -> its matrices by name, on the CPU. Weak, since the student is loaded again to compare it.
        self._loaded: WeakKeyDictionary[nn.Module, dict[str, Tensor | None]] = WeakKeyDictionary()

    @hookimpl(trylast=True)
    def after_load(self, model: PreTrainedModel, role: Literal["teacher", "student"]) -> None:
        """Copy the student's matrices: full fine-tuning and some adapters change them.

        Quantised ones cannot change, and are not copied. Raises UsageError where `target_modules` names none.
        """
        if role != "student":
            return
        names = [
            weight.parameter.removesuffix(".weight") for weight in adaptable_weights(model) if self._selects(weight)
        ]
        if not names:
            raise UsageError(
                f"target_modules is {self.target_modules}, which names no linear layer\nfix: name endings as [q_proj]"
            )
        self._loaded[model] = {name: _copied(model.get_submodule(name)) for name in names}

    def _selects(self, weight: Any) -> bool:
        if not weight.is_linear or weight.is_stacked:
            return False
        return weight.layer is not None if self.target_modules is None else bool(weight.is_named(self.target_modules))

    @hookimpl
    def on_evaluate(self, model: nn.Module) -> dict[str, float | int | None]:
        """Return {effective_rank, intruder_dimensions, matrices}; the first two are None where no matrix changed."""
        loaded = next((self._loaded[part] for part in model.modules() if part in self._loaded), {})
        if "module" in dict(model.named_children()):  # the student in another state, which its weights do not show
            loaded = {}
        layers = {name: _layer(model, name) for name in loaded}
        measured = [self._measure(layer, loaded[name]) for name, layer in layers.items() if layer is not None]
        found = [numbers for numbers in measured if numbers is not None]
        if not found:
            return {"effective_rank": None, "intruder_dimensions": None, "matrices": 0}
        ranks, intruders = zip(*found, strict=True)
        return {"effective_rank": fmean(ranks), "intruder_dimensions": fmean(intruders), "matrices": len(found)}

    def _measure(self, layer: Any, loaded: Tensor | None) -> tuple[float, int] | None:
        """Return effective rank and intruder dimensions of a layer; None where its matrix did not change."""
        before, after = _quantised(layer) if loaded is None else _matrices(layer, loaded)
        if before is None or after is None:
            return None
        sizes = torch.linalg.svdvals(after - before)
        sizes = sizes[sizes > ROUNDING * after.norm()]
        if len(sizes) == 0:
            return None
        rank = torch.special.entr(sizes / sizes.sum()).sum().exp().item()
        return rank, intruder_dimensions(before, after, self.k, self.epsilon)


def intruder_dimensions(before: Tensor, after: Tensor, k: int, epsilon: float) -> int:
    """Return how many of the k largest left singular vectors of `after` have no near one in `before`."""
    olds, news = (torch.linalg.svd(weight, full_matrices=False).U for weight in (before, after))
    nearest = (news[:, :k].T @ olds).abs().amax(1)
    return int((nearest < epsilon).sum())


def _copied(layer: Any) -> Tensor | None:
    """Return a copy of a layer's weight on the CPU; None where it is quantised."""
    weight = layer.weight.detach()
    return weight.to("cpu", copy=True) if weight.is_floating_point() else None


def _layer(model: nn.Module, name: str) -> Any:
    """Return the layer of a name in the student, with its adapter where it has one; None where it has another name."""
    return next((layer for path, layer in model.named_modules() if f".{path}".endswith(f".{name}")), None)


def _matrices(layer: Any, loaded: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return a layer's matrix [O, I] as it was loaded and now, in float64; None, None where it has none or the same.

    Frozen weights may have been rounded after they were loaded; this is not counted as a change.
    """
    parameters = list(layer.parameters())
    narrow = next((weight.dtype for weight in parameters if weight.dtype in NARROW), loaded.dtype)
    before = loaded.to(parameters[0].device, narrow).double()
    is_transposed = any(_is_conv1d(part) for part in layer.modules())
    before = before.T if is_transposed else before
    if not list(layer.children()):  # it has no adapter; some of peft's adapters are linear layers themselves
        after = layer.weight.detach().double()
        after = after.T if is_transposed else after
        return (None, None) if torch.equal(before, after) else (before, after)
    after = _as_matrix(_function(layer), before)
    return (None, None) if after is None else (before, after)


def _quantised(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the matrix of a quantised layer without and with its adapter of peft; None, None where it has none."""
    if not hasattr(layer, "get_base_layer"):
        return None, None
    base = layer.get_base_layer()
    adapted, unadapted = _function(layer), _function(base)
    before, _ = _on_identity(unadapted, base.in_features, base.weight.device)
    # The difference, since the outputs of a quantised layer are rounded to 16 bits before the adapter's are added.
    change = _as_matrix(lambda rows: adapted(rows) - unadapted(rows), torch.zeros_like(before))
    return (None, None) if change is None else (before, before + change)


def _is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is GPT-2's, whose weight is [I, O]."""
    return type(layer).__name__ == "Conv1D"


def _function(layer: nn.Module) -> Function:
    """Return the layer as a function [n, I] -> [n, O] in float32: 16-bit weights would round the change away."""
    named = [*layer.named_parameters(), *layer.named_buffers()]
    wide = {name: weight.detach().float() for name, weight in named if weight.dtype in NARROW}

    @torch.no_grad()
    def outputs(rows: Tensor) -> Tensor:
        computed: Tensor = functional_call(layer, wide, (rows.float()[None],))  # some layers expect a batch of rows
        return computed[0].double()

    return outputs


def _as_matrix(function: Function, before: Tensor) -> Tensor | None:
    """Return the matrix [O, I] of a function [n, I] -> [n, O], float64; None where it is not linear but for a bias.

    before  [O, I] float64: the matrix without the change, to which the error is compared
    """
    matrix, bias = _on_identity(function, before.shape[1], before.device)
    rows = torch.randn(8, before.shape[1], generator=torch.Generator().manual_seed(0)).to(before.device).double()
    outputs = function(rows)
    error, change = (outputs - rows @ weight.T - bias for weight in (matrix, before))
    is_linear = error.abs().max() <= NONLINEAR * change.abs().max() + ROUNDED * outputs.abs().max()
    return matrix if is_linear else None


def _on_identity(function: Function, inputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return matrix [O, I] and bias [1, O] of a linear function [n, I] -> [n, O], in float64."""
    bias = function(torch.zeros(1, inputs, device=device))
    return (function(torch.eye(inputs, device=device)) - bias).T, bias

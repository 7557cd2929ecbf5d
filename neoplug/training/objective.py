"""The objective: from hidden states of answer tokens to losses and their gradient, one block of logits at a time.

N answer tokens of a micro-batch, n of one block, t of one tile, H hidden size, V shared vocabulary, K losses.
Matrix products are fast with many rows, elementwise operations with rows that stay in the cache: a block of logits is
computed by one product and then processed in tiles, whose gradient overwrites their logits.

Calls the hooks `token_loss` and `token_gradient`, or with a sparse teacher `token_loss_sparse` and
`token_gradient_sparse`, and `token_weight`. The mask is applied before (`data`), the division by
the number of answer tokens after (`training.loop`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from neoplug.data.batch import to_device
from neoplug.models.head import Head
from neoplug.teachers.base import LOGITS, SPARSE, Signal, SparseSignal, require_logits
from neoplug.training.diagnostics import Diagnosis
from neoplug.training.formula import Formula

BLOCK = 2**24  # elements of a block of logits on a CPU: 64 MiB in float32
TILE = 2**20  # elements of a tile on a CPU: 4 MiB stay in its cache
ROWS = 512  # of a block and of a tile on a GPU: with fewer, a product waits for the head's weight to be read
MOST_ROWS = 2048  # of a block on a GPU where the gradient of the head's weight is read and written for each


@dataclass(frozen=True, eq=False)
class Loss:
    """One named loss of a recipe, with its weight at this step.

    token_loss      (student, teacher, labels, progress) -> [t] nats; with a teacher whose signal is sparse
                    (student, ids, probabilities, rest, teacher_entropy, labels, progress). Both are called with all
                    of these arguments that there are
    token_gradient  the same arguments -> ([t] nats, [t, V] gradient of the student's logits), or None: autograd then
    formula         of a loss that the fused kernel computes in place of both, where all others have formulas too
    """

    name: str
    weight: float
    token_loss: Callable[..., Tensor]
    token_gradient: Callable[..., tuple[Tensor, Tensor]] | None = None
    formula: Formula | None = None


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """The factor of each token's losses and gradient: the product of all token weights of the recipe.

    functions  name -> (student, teacher, teacher_entropy, labels, position, progress) -> [t]
    position   [N] int64: each answer token's position in its answer, from 0
    """

    functions: Mapping[str, Callable[..., Tensor]]
    position: Tensor

    def of(self, rows: slice, **arguments: Any) -> Tensor:
        """Return the weights [t] of a tile's tokens. One below 0 becomes NaN, which the next flush refuses."""
        position, teacher = self.position[rows], arguments["teacher"]
        if teacher is not None and self._reads_entropy:
            arguments["teacher_entropy"] = torch.special.entr(teacher.exp()).sum(-1)
        product = torch.ones(position.shape, device=position.device)
        for function in self.functions.values():
            weight = function(position=position, **arguments)
            product = product * weight
            product = product.masked_fill(weight < 0, torch.nan)
        return product

    @property
    def _reads_entropy(self) -> bool:
        return any("teacher_entropy" in function.arguments for function in self.functions.values())  # type: ignore[attr-defined]


def objective(
    losses: Sequence[Loss], hidden: Tensor, head: Head, signal: Signal | None, labels: Tensor, progress: float,
    diagnosis: Diagnosis | None = None, token_weights: TokenWeights | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the weighted sum over losses and answer tokens, and each loss of each token.

    hidden         [N, H] the student's hidden states; they carry the gradient
    signal         the teacher's signal, with logits or sparse; None without a teacher
    labels         [N] int64 token ids
    diagnosis      adds up every tile, if given
    token_weights  multiplies loss and gradient of each token, if given
    returns        float32 scalar with a gradient to `hidden` and a trainable head; [K, N] float32 nats without gradient

    The functions check their answers themselves, as those of `registry.Plugins` do.

    Raises:
        RunError: an answer is refused, or the signal is neither sparse nor has logits.
    """
    weighted, values = _Objective.apply(  # type: ignore[no-untyped-call]
        hidden, losses, head, signal, labels, progress, diagnosis, token_weights, *head.parameters()
    )
    return weighted, values


class _Objective(torch.autograd.Function):
    """Computes the gradient in the forward pass, while a block's logits exist; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, losses: Sequence[Loss], head: Head, signal: Signal | None, labels: Tensor,
        progress: float, diagnosis: Diagnosis | None, token_weights: TokenWeights | None, *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        labels = head.vocabulary.index(labels)
        values = torch.zeros(len(losses), len(hidden), device=hidden.device)
        weights = torch.tensor([loss.weight for loss in losses]).to(hidden.device, non_blocking=True)
        fuses = bool(losses) and all(loss.formula for loss in losses) and diagnosis is None and token_weights is None
        gradients = [torch.empty_like(hidden), *map(torch.zeros_like, parameters)]
        with torch.autocast(hidden.device.type, enabled=False):
            logits_of = head.prepare_logits_fn()
            trained = sum(parameter.numel() for parameter in parameters)
            for rows in blocks(len(hidden), head.vocabulary.size, hidden.device, trained):
                states = hidden[rows].detach().requires_grad_()
                with torch.enable_grad():
                    logits = logits_of(states)
                block = logits.detach()  # shares the memory: the gradient overwrites the logits tile by tile
                if fuses:
                    values[:, rows] = _fused(losses, block, signal, rows, labels[rows], weights)
                else:
                    values[:, rows] = _tile_by_tile(
                        losses, block, signal, rows, labels, progress, diagnosis, token_weights
                    )
                parts = torch.autograd.grad(logits, [states, *parameters], block)
                gradients[0][rows] = parts[0]
                for total, part in zip(gradients[1:], parts[1:], strict=True):
                    total += part
                del logits, block, parts  # freed before the next block is computed
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(values)
        return weights @ values.sum(-1), values

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *parameters = (gradient.mul_(scale) for gradient in ctx.saved_tensors)
        return hidden, None, None, None, None, None, None, None, *parameters


def _fused(
    losses: Sequence[Loss], block: Tensor, signal: Signal | None, rows: slice, labels: Tensor, weights: Tensor
) -> Tensor:
    """Overwrite a block of logits [n, V] with the gradient by the fused kernel; return each loss of each token, [K, n].

    labels, weights  [n] columns of the block; [K] of the losses
    """
    from neoplug.training.fused_tile import fused_tile  # imports Triton

    formulas = [loss.formula for loss in losses if loss.formula]
    teacher = None
    if signal is not None and any(formula.compares for formula in formulas):
        teacher = to_device(require_logits(signal).logits(rows), block.device)
    return fused_tile(formulas, block, teacher, labels, weights)


def _tile_by_tile(
    losses: Sequence[Loss], block: Tensor, signal: Signal | None, rows: slice, labels: Tensor, progress: float,
    diagnosis: Diagnosis | None, token_weights: TokenWeights | None,
) -> Tensor:  # fmt: skip
    """Overwrite a block of logits [n, V] with the gradient, by the hooks; return each loss of each token, [K, n].

    labels  [N] of all answer tokens, as columns of the block
    """
    values = block.new_empty(len(losses), len(block))
    teacher_of = _teacher_block(signal, rows, block.device)
    for tile in tiles(block):
        at = slice(rows.start + tile.start, rows.start + tile.stop)
        arguments = {**teacher_of(tile), "labels": labels[at], "progress": progress}
        weigh = None if token_weights is None else partial(token_weights.of, at)
        values[:, tile] = differentiate_tile(losses, block[tile], arguments, diagnosis, weigh)
    return values


def _teacher_block(
    signal: Signal | None, rows: slice, device: torch.device
) -> Callable[[slice], dict[str, Tensor | None]]:
    """Return a function, tile of a block -> the arguments of the hooks that come from the teacher.

    With logits `teacher` [t, V] log-probabilities; with a sparse signal `ids` [t, K], `probabilities` [t, K], `rest`
    [t] or None, and `teacher_entropy` [t], and no `teacher`.
    """
    if signal is None:
        return lambda tile: {"teacher": None, "teacher_entropy": None}
    if SPARSE in signal.provides and LOGITS not in signal.provides:
        entries = cast(SparseSignal, signal).sparse(rows).to(device)
        return lambda tile: {"teacher": None, **entries[tile].arguments()}
    logits = to_device(require_logits(signal).logits(rows), device)
    return lambda tile: {"teacher": torch.log_softmax(logits[tile], -1, out=logits[tile])}


def differentiate_tile(
    losses: Sequence[Loss], logits: Tensor, arguments: dict[str, Any], diagnosis: Diagnosis | None = None,
    weigh: Callable[..., Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Overwrite `logits` [t, V] with the gradient of the weighted sum; return each loss of each token, [K, t].

    arguments  of the losses, but for `student`
    """
    student = torch.log_softmax(logits, -1)
    if diagnosis is not None:
        diagnosis.add(student, **arguments)
    values: dict[str, Tensor] = {}
    for loss in losses:
        if loss.token_gradient is not None:
            value, gradient = loss.token_gradient(student=student, **arguments)
            _accumulate(logits, gradient, loss.weight, first=not values)
            values[loss.name] = value
    if without := [loss for loss in losses if loss.token_gradient is None]:
        differentiated, gradient = _differentiate(without, student, arguments)
        _accumulate(logits, gradient, 1.0, first=not values)
        values |= differentiated
    each = torch.stack([values[loss.name] for loss in losses])
    if weigh is None:
        return each
    factor = weigh(student=student, **arguments)
    logits.mul_(factor[:, None])
    return each * factor


def _accumulate(total: Tensor, gradient: Tensor, weight: float, first: bool) -> None:
    """Add `weight * gradient` to `total` [t, V] in place; the first one overwrites it."""
    if first:
        torch.mul(gradient, weight, out=total)
    else:
        total.add_(gradient, alpha=weight)


def _differentiate(
    losses: Sequence[Loss], student: Tensor, arguments: dict[str, Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return losses without a closed form, [t] each, and the gradient [t, V] of their weighted sum by the logits."""
    leaf = student.detach().requires_grad_()
    with torch.enable_grad():
        values = {loss.name: loss.token_loss(student=leaf, **arguments) for loss in losses}
        total = torch.stack([loss.weight * values[loss.name].sum() for loss in losses]).sum()
    gradient = torch.zeros_like(leaf)
    if total.requires_grad:  # a loss may read the teacher alone
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)
    gradient = gradient.addcmul(student.exp(), gradient.sum(-1, keepdim=True), value=-1)  # through log-softmax
    return {name: value.detach() for name, value in values.items()}, gradient


@torch.no_grad()
def log_probabilities(
    head: Head, hidden: Tensor, signal: Signal | None = None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield rows with the student's and the teacher's log-probabilities [t, V] in float32, tile by tile."""
    logits_of = head.prepare_logits_fn()
    teacher_logits = None if signal is None else require_logits(signal).logits
    for rows in blocks(len(hidden), head.vocabulary.size, hidden.device):
        logits = logits_of(hidden[rows])
        teacher = None if teacher_logits is None else teacher_logits(rows).to(hidden.device)
        for tile in tiles(logits):
            log_p = None if teacher is None else torch.log_softmax(teacher[tile], -1)
            yield slice(rows.start + tile.start, rows.start + tile.stop), torch.log_softmax(logits[tile], -1), log_p


def blocks(rows: int, vocabulary: int, device: torch.device, trained: int = 0) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of the rows of a block of logits.

    On a CPU they are as even as they can be.

    trained  how many numbers of the head are trained
    """
    size = block_rows(vocabulary, device, trained)
    if device.type == "cpu" and rows:
        size = -(-rows // -(-rows * vocabulary // BLOCK))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def block_rows(vocabulary: int, device: torch.device, trained: int = 0) -> int:
    """Return the most rows of a block: BLOCK logits on a CPU; ROWS on a GPU, where they need not fit into a cache.

    On a GPU a block is as large as the trained weights of the head, up to MOST_ROWS: adding up their gradients then
    takes no more time than reading the logits.
    """
    if device.type == "cpu":
        return max(1, BLOCK // vocabulary)
    return min(MOST_ROWS, max(ROWS, trained // vocabulary))


def tiles(block: Tensor) -> Iterator[slice]:
    """Yield slices that cover the rows of a block of logits [n, V]."""
    size = max(1, TILE // block.shape[1]) if block.device.type == "cpu" else ROWS
    for start in range(0, len(block), size):
        yield slice(start, min(start + size, len(block)))

"""Examples for losses and token weights, and calls of their hooks as in a run. N answer tokens, V vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neoplug.registry import answered

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

EIGHTHS = 8  # the logits are multiples of 1/8


@dataclass(frozen=True, eq=False)
class Example:
    """Logits and labels on which a loss or a token weight is tested.

    student, teacher  [N, V] logits of any floating dtype, not normalised
    labels            [N] int64
    progress          from 0.0 to 1.0
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    progress: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: slice) -> Example:
        """Return the example restricted to some tokens."""
        return Example(self.student[rows], self.teacher[rows], self.labels[rows], self.progress)

    def of(self, dtype: torch.dtype) -> Example:
        """Return the example with logits of another dtype."""
        return Example(self.student.to(dtype), self.teacher.to(dtype), self.labels, self.progress)


def examples(rows: int = 3, vocabulary: int = 6, largest: int = 30) -> SearchStrategy[Example]:
    """Return a hypothesis strategy: up to `rows` tokens, up to `vocabulary` logits of at most +-`largest` each."""
    from hypothesis import strategies as st

    shapes = st.tuples(st.integers(1, rows), st.integers(2, vocabulary))
    return shapes.flatmap(lambda shape: _of_shape(*shape, largest))


def extreme(vocabulary: int) -> Example:
    """Return five tokens with extreme bf16 logits.

    In order: random; teacher and student certain of different tokens, with the teacher's as label; the same with the
    student's as label; logits in the thousands; a uniform teacher.
    """
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, vocabulary, generator=rng) for _ in range(2))
    student[1:3], teacher[1:3, 7], student[1:3, 9] = 0, 1e4, 1e4
    student[3], teacher[3] = student[3] * 1e3, teacher[3] * 1e3
    teacher[4] = 0
    return Example(student.bfloat16(), teacher.bfloat16(), torch.tensor([0, 7, 9, vocabulary - 1, 5]))


@cache  # hypothesis takes longer to make a strategy than to draw from it
def _of_shape(count: int, size: int, largest: int) -> SearchStrategy[Example]:
    """Return a strategy for examples of `count` tokens over a vocabulary of `size`."""
    from hypothesis import strategies as st

    eighths = st.integers(-EIGHTHS * largest, EIGHTHS * largest)  # integers shrink much faster than floats
    flat = st.lists(eighths, min_size=count * size, max_size=count * size)
    logits = flat.map(lambda numbers: torch.tensor(numbers).reshape(count, size) / EIGHTHS)
    labels = st.lists(st.integers(0, size - 1), min_size=count, max_size=count).map(torch.tensor)
    progress = st.sampled_from((0.0, 0.5, 1.0))
    return st.builds(Example, student=logits, teacher=logits, labels=labels, progress=progress)


def call(hook: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a hook as neoplug does, with the arguments that it takes."""
    return hook(**{name: arguments[name] for name in inspect.signature(hook).parameters})


def hook(plugin: Any, name: str) -> Callable[..., Any] | None:
    """Return the method marked as the hook's implementation, else the method of the hook's name; None without one."""
    return getattr(plugin, _method(plugin.__class__, name), None)


@cache  # `answered` reads every member of the class
def _method(plugin: type, name: str) -> str:
    """Return the name of the method that implements a hook; the hook's name where none is marked."""
    marked = answered(plugin).get(name)
    return marked.method if marked else name


def arguments_of(example: Example) -> dict[str, Any]:
    """Return the arguments as neoplug passes them: log-probabilities in float32, or float64 for float64 logits."""
    wide = example.of(torch.promote_types(torch.float32, example.student.dtype))
    student, teacher = wide.student.log_softmax(-1), wide.teacher.log_softmax(-1)
    return {"student": student, "teacher": teacher, "labels": example.labels, "progress": example.progress}


@torch.no_grad()
def value(loss: Any, example: Example) -> Tensor:
    """Return the value of `token_loss` on an example, [N], without gradient."""
    losses: Tensor = call(token_loss(loss), arguments_of(example))
    return losses


def token_loss(loss: Any) -> Callable[..., Any]:
    """Return the function `token_loss` of a loss. Raises TypeError where it has none."""
    function = hook(loss, "token_loss")
    if function is None:
        raise TypeError(f"{type(loss).__name__} has no `token_loss`")
    return function


@torch.no_grad()
def closed_form(loss: Any, example: Example) -> tuple[Tensor, Tensor] | None:
    """Return the value of `token_gradient` on an example, ([N], [N, V]); None where the loss has no such hook."""
    function = hook(loss, "token_gradient")
    return None if function is None else call(function, arguments_of(example))


def gradient(loss: Any, example: Example) -> Tensor:
    """Return the gradient of `token_loss` with respect to the student's logits, [N, V], by autograd."""
    arguments = arguments_of(example)
    logits = example.student.detach().to(arguments["student"].dtype).requires_grad_()
    arguments["student"] = logits.log_softmax(-1)
    total = call(token_loss(loss), arguments).sum()
    if not total.requires_grad:  # a loss that does not depend on the student
        return torch.zeros_like(logits)
    (result,) = torch.autograd.grad(total, logits)
    return result

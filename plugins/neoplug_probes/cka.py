"""Linear CKA: how similar the hidden states of student and teacher are, up to rotation and scale.

    CKA(X, Y) = |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F),  between 0 and 1;  X [N, Hs], Y [N, Ht] with column means 0

X and Y are the states at the N positions that predict the held-out answer tokens, in one layer of each model. The
products of centred columns are accumulated over batches in float64, so the result does not depend on the batches, and
memory on the hidden sizes alone.
Source: Kornblith et al. 2019, arXiv 1905.00414, section 3, table 1 (CKA, linear).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Batch

States = Callable[[torch.nn.Module, "Batch", Iterable[int]], dict[int, Tensor]]


@dataclass(eq=False)
class CKA:
    """Similarity of the hidden states of student and teacher (linear CKA), for pairs of layers."""

    layers: dict[int, int] = field(default_factory=lambda: {-1: -1})  # student's layer: teacher's; -1 is the last

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers is empty; {-1: -1} compares the last layers")

    @hookimpl
    def on_evaluate(
        self, model: torch.nn.Module, teacher: torch.nn.Module | None, batches: Iterable[Batch], states: States
    ) -> dict[str, float | None]:
        """Return {student's layer: CKA}; None without a teacher, or where the states of a layer are all the same."""
        if teacher is None:
            return dict.fromkeys(map(str, self.layers))
        moments = {layer: _Moments() for layer in self.layers}
        for batch in batches:
            of_student = states(model, batch, self.layers)
            of_teacher = states(teacher, batch, set(self.layers.values()))
            for layer, paired in self.layers.items():
                moments[layer].add(of_student[layer], of_teacher[paired])
        return {str(layer): each.cka() for layer, each in moments.items()}


class _Moments:
    """Number, means [Hs + Ht] and centred products [Hs + Ht, Hs + Ht] of the rows (x, y), over batches of rows."""

    def __init__(self) -> None:
        self.rows, self.split = 0, 0
        self.means = self.products = torch.zeros(())

    def add(self, of_student: Tensor, of_teacher: Tensor) -> None:
        """Add n rows, [n, Hs] and [n, Ht]: products about the common mean (Chan, Golub, LeVeque 1983, equation 2.1)."""
        n, self.split = of_student.shape
        if n == 0:
            return
        joint = torch.cat([of_student, of_teacher.to(of_student.device)], 1).double()
        means = joint.mean(0)
        shift, total = means - self.means, self.rows + n
        centred = joint - means
        self.products = self.products + centred.T @ centred + torch.outer(shift, shift) * (self.rows * n / total)
        self.means = self.means + shift * (n / total)
        self.rows = total

    def cka(self) -> float | None:
        """Return the CKA of all rows."""
        if self.rows == 0:
            return None
        students, teachers = slice(self.split), slice(self.split, None)
        scale = self.products[students, students].norm() * self.products[teachers, teachers].norm()
        if scale == 0:
            return None
        return float(self.products[students, teachers].square().sum() / scale)

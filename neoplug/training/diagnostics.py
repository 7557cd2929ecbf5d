"""Quantities of teacher and student per answer token that show whether distillation helps, and their means.

t answer tokens of a tile, V shared vocabulary; p is the teacher's and q the student's probability, y is 1 at the answer
token and 0 elsewhere.
"""

from collections.abc import Mapping, Sequence
from math import isnan, sqrt
from typing import Any

import torch
from torch import Tensor

TOP = 10  # the teacher's most probable tokens
STUDENT_COLUMNS = ("student_cross_entropy", "student_entropy")
COLUMNS = (
    *STUDENT_COLUMNS,
    *("teacher_cross_entropy", "teacher_entropy", "top1_agreement", "top10_mass", "teacher_top10_mass"),
    *("kd_ce_dot", "kd_squared_norm", "ce_squared_norm"),
)


class Diagnosis:
    """Sums over answer tokens, on the device where they are computed: adding a tile does not synchronise."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(COLUMNS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, ids: Tensor | None = None,
        teacher_entropy: Tensor | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """Add the columns of a tile.

        student, teacher, labels  as of `token_diagnostics`
        ids, teacher_entropy      [t, K] and [t] of a sparse teacher, its most probable token first; None of any other
        """
        values = token_diagnostics(student, teacher, labels)
        if ids is not None and teacher_entropy is not None:
            agrees = (ids[:, 0] == student.argmax(-1)).float()
            unknown = torch.full_like(agrees, torch.nan)
            of_teacher = [unknown, teacher_entropy, agrees, *[unknown] * (len(COLUMNS) - len(STUDENT_COLUMNS) - 3)]
            values = torch.cat([values, torch.stack(of_teacher, -1)], -1)
        self.sums[: values.shape[-1]] += values.sum(0, dtype=torch.float64)


def token_diagnostics(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    """Return each quantity of each token: [t, 10] in the order of COLUMNS; without a teacher [t, 2], the first two.

    student  [t, V] log-probabilities at temperature 1
    teacher  the same of the teacher, or None
    labels   [t] the answer tokens, as columns of the two

    kd_ce_dot, kd_squared_norm and ce_squared_norm are inner products of the gradients by the student's logits: q - p of
    forward KL and q - y of cross-entropy.
    """
    q, answers = student.exp(), labels[:, None]
    columns = [-student.gather(-1, answers), -_dot(q, student)]
    if teacher is not None:
        p = teacher.exp()
        entropy = -_dot(p, teacher)
        difference = p.sub_(q)
        top_log_p, top = teacher.topk(min(TOP, p.shape[-1]))
        columns += [
            -teacher.gather(-1, answers),
            entropy,
            (top[:, :1] == student.argmax(-1, keepdim=True)).to(q.dtype),
            q.gather(-1, top).sum(-1, keepdim=True),
            top_log_p.exp().sum(-1, keepdim=True),
            difference.gather(-1, answers) - _dot(difference, q),
            _dot(difference, difference),
            _dot(q, q) - 2 * q.gather(-1, answers) + 1,
        ]
    return torch.cat(columns, -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    dot: Tensor = torch.linalg.vecdot(a, b)
    return dot[:, None]


def means(sums: Sequence[float], tokens: int) -> dict[str, float | None]:
    """Return means over `tokens` answer tokens, in nats where they have a unit, from the sums of a diagnosis.

    Without a teacher: student_cross_entropy, student_entropy. With one also teacher_cross_entropy, teacher_entropy,
    top1_agreement, top10_mass_share and kd_ce_cosine; with a sparse teacher those that need more than its entropy and
    its most probable token are None.
    """
    named = dict(zip(COLUMNS, sums, strict=True))
    mean: dict[str, float | None] = {name: named[name] / max(tokens, 1) for name in COLUMNS[:5]}
    if not named["teacher_top10_mass"]:
        return {name: mean[name] for name in STUDENT_COLUMNS}
    if isnan(named["teacher_top10_mass"]):
        return mean | {"teacher_cross_entropy": None, "top10_mass_share": None, "kd_ce_cosine": None}
    return mean | {"top10_mass_share": top10_mass_share(named), "kd_ce_cosine": kd_ce_cosine(named)}


def top10_mass_share(sums: Mapping[str, float]) -> float:
    """Return the student's probability of the teacher's ten most probable tokens, as a share of the teacher's own."""
    teacher = sums["teacher_top10_mass"]
    return sums["top10_mass"] / teacher if teacher else 0.0


def kd_ce_cosine(sums: Mapping[str, float]) -> float:
    """Return the cosine between the gradients of forward KL and cross-entropy by the student's logits."""
    norms = sqrt(max(sums["kd_squared_norm"] * sums["ce_squared_norm"], 0.0))
    return sums["kd_ce_dot"] / norms if norms else 0.0

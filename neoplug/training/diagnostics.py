"""Why did distillation (not) help? What tells it, token by token while the probabilities are at hand; and in words.

t answer tokens of a tile, V shared vocabulary; p is the teacher's and q the student's probability.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

TOP = 10  # tokens that the teacher finds likeliest
SEEN = (
    *("student_cross_entropy", "student_entropy", "teacher_cross_entropy", "teacher_entropy", "top1_agreement"),
    *("student_top_mass", "teacher_top_mass", "kd_ce", "kd_kd", "ce_ce"),
)


class Diagnosis:
    """Sums over answer tokens, kept where they are computed: to see a tile waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(SEEN), dtype=torch.float64, device=device)

    @torch.no_grad()
    def see(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> None:
        """Add a tile: log-probabilities [t, V] of both, at temperature 1, and the answer tokens [t] as their columns.

        The cosine's terms are of the gradients by the student's logits, q - p of forward KL and q - y of
        cross-entropy, y being 1 at the answer token.
        """
        q, answers = student.exp(), labels[:, None]
        seen = [-student.gather(-1, answers), -_dot(q, student)]
        if teacher is not None:
            p = teacher.exp()
            entropy = -_dot(p, teacher)
            difference = p.sub_(q)
            top_log_p, top = teacher.topk(min(TOP, p.shape[-1]))
            seen += [
                -teacher.gather(-1, answers),
                entropy,
                (top[:, :1] == student.argmax(-1, keepdim=True)).to(q.dtype),
                q.gather(-1, top).sum(-1, keepdim=True),
                top_log_p.exp().sum(-1, keepdim=True),
                difference.gather(-1, answers) - _dot(difference, q),
                _dot(difference, difference),
                _dot(q, q) - 2 * q.gather(-1, answers) + 1,
            ]
        self.sums[: len(seen)] += torch.cat(seen, -1).sum(0, dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)[:, None]


def means(sums: Sequence[float], tokens: int) -> dict[str, float]:
    """Return what the sums of `tokens` answer tokens say, nats per token where there is a unit.

    Without a teacher: student_cross_entropy, student_entropy. Beside one also teacher_cross_entropy, teacher_entropy,
    top1_agreement; top10_mass_share, the student's mass on the teacher's ten likeliest tokens over the teacher's own;
    and kd_ce_cosine between the directions in which forward KL and cross-entropy pull the student's logits.
    """
    seen = dict(zip(SEEN, sums, strict=True))
    means = {name: seen[name] / max(tokens, 1) for name in SEEN[:5]}
    if not seen["teacher_top_mass"]:
        return {name: means[name] for name in SEEN[:2]}
    pulls = sqrt(max(seen["kd_kd"] * seen["ce_ce"], 0.0))
    return means | {
        "top10_mass_share": seen["student_top_mass"] / seen["teacher_top_mass"],
        "kd_ce_cosine": seen["kd_ce"] / pulls if pulls else 0.0,
    }


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a finished run should know of its teacher, in plain sentences; none where all is well."""
    before, after, teacher = (result.get(name) or {} for name in ("before", "after", "teacher"))
    if not all("cross_entropy" in measured for measured in (before, after, teacher)):
        return []
    return [*_of_the_teacher(before, after, teacher), *_of_the_pull(before, after)]


def _of_the_teacher(before: Mapping[str, Any], after: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[str]:
    ours, theirs = before["cross_entropy"], teacher["cross_entropy"]
    if theirs >= ours:
        yield (
            f"The teacher is no better than the student was on this data: its cross-entropy is {theirs:.3f} nats per "
            f"answer token, the student's was {ours:.3f}. To imitate it cannot bring the student closer to this text."
        )
    elif theirs > after["cross_entropy"]:
        yield (
            f"The student is better than its teacher on this data now (cross-entropy {after['cross_entropy']:.3f} "
            f"against {theirs:.3f} nats per answer token): to imitate it further pulls the student back."
        )


def _of_the_pull(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    kd, ce = (round(after[name], 3) - round(before[name], 3) for name in ("forward_kl", "cross_entropy"))  # as shown
    moved = f"forward KL went from {before['forward_kl']:.3f} to {after['forward_kl']:.3f} nats per token, "
    moved += f"cross-entropy from {before['cross_entropy']:.3f} to {after['cross_entropy']:.3f}"
    if kd < 0 < ce:
        yield f"Teacher and text pull apart: {moved}. The student became like its teacher and lost the text."
    elif ce < 0 < kd:
        yield f"Teacher and text pull apart: {moved}. The student learnt the text and left its teacher."
    elif kd > 0 and ce > 0:
        yield f"Training did harm: {moved}. A lower learning rate or a longer warm-up is the first thing to try."
    if after["kd_ce_cosine"] < -0.1:  # nearer to 0 they have little to do with each other
        yield (
            "Where training ended, forward KL and cross-entropy ask for opposite changes of the student's logits "
            f"(cosine {after['kd_ce_cosine']:.2f}): what the one gains, the other loses."
        )

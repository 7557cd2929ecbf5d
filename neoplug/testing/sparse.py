"""Conformance tests of losses that are computed from a few entries of the teacher's distribution.

N answer tokens, V vocabulary, K entries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neoplug.registry.teacher_reads import reads_teacher
from neoplug.testing.loss_examples import Example, arguments_of, call, hook, value
from neoplug.testing.search import Broken, check_close


def check_buckets(loss: Any, example: Example) -> None:
    """From the teacher's largest entries and the rest it is the loss over these tokens and one for all others."""
    for entries in range(1, example.student.shape[1]) if "buckets" not in unread(loss) else ():
        given = _largest(example, entries)
        merged = _merged(example, given["ids"])
        check_close(_value(loss, given), value(loss, merged), f"token_loss_sparse of {entries} entries and the rest")


def check_linear(loss: Any, example: Example) -> None:
    """From a sample of entries it is linear in their probabilities, and of all entries it is the loss."""
    if "linear" in unread(loss):
        return
    given = _largest(example, example.student.shape[1]) | {"rest": None}
    check_close(_value(loss, given), value(loss, example), "token_loss_sparse of all entries")
    flat = torch.full_like(given["probabilities"], 1 / given["probabilities"].shape[1])
    one, other, mixed = (given["probabilities"], flat, (given["probabilities"] + flat) / 2)
    of_one, of_other, of_mixed = (_value(loss, given | {"probabilities": p}) for p in (one, other, mixed))
    check_close(of_mixed, (of_one + of_other) / 2, "token_loss_sparse of the mean of two samples")


def check_sparse_closed_form(loss: Any, example: Example) -> None:
    """`token_gradient_sparse` returns the loss from entries, and the gradient that autograd computes."""
    function = hook(loss, "token_gradient_sparse")
    if function is None or "sparse_closed_form" in unread(loss):
        return
    size = example.student.shape[1]
    samples = [_largest(example, size) | {"rest": None}] if reads_teacher(loss) == "linear" else []
    for given in [*samples, *(_largest(example, entries) for entries in {1, size - 1})]:
        found, gradient = torch.no_grad()(call)(function, given)
        check_close(found, _value(loss, given), "the loss that token_gradient_sparse returns")
        check_close(gradient, _gradient(loss, given, example), "the gradient that token_gradient_sparse returns")


def unread(loss: Any) -> dict[str, str]:
    """Return the properties that do not apply to a loss because of what it reads of the teacher, with the reason."""
    reads, names = reads_teacher(loss), ("buckets", "linear", "sparse_closed_form")
    if reads in ("nothing", "full"):
        return dict.fromkeys(names, f"it reads {'nothing' if reads == 'nothing' else 'all'} of the teacher")
    return {"linear": "it is not linear in the teacher's probabilities"} if reads == "buckets" else {}


def _largest(example: Example, entries: int) -> dict[str, Any]:
    """Return the arguments of `token_loss_sparse` with the teacher's largest probabilities."""
    given = arguments_of(example)
    log_p = given.pop("teacher")
    top, ids = log_p.topk(entries)
    rest = log_p.exp().scatter(-1, ids, 0).sum(-1)
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    return {**given, "ids": ids, "probabilities": top.exp(), "rest": rest, "teacher_entropy": entropy}


def _merged(example: Example, ids: Tensor) -> Example:
    """Return the example over K + 1 outcomes: the tokens `ids` [N, K], and all others together."""

    def outcomes(logits: Tensor) -> Tensor:
        others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits.gather(-1, ids), others], -1)

    found = ids == example.labels[:, None]
    labels = torch.where(found.any(-1), found.float().argmax(-1), ids.shape[1])
    return replace(example, student=outcomes(example.student), teacher=outcomes(example.teacher), labels=labels)


def _loss_from_entries(loss: Any, given: dict[str, Any]) -> Tensor:
    function = hook(loss, "token_loss_sparse")
    if function is None:
        raise Broken(f"`reads_teacher` is {reads_teacher(loss)}, but there is no token_loss_sparse")
    found: Tensor = call(function, given)
    return found


@torch.no_grad()
def _value(loss: Any, given: dict[str, Any]) -> Tensor:
    return _loss_from_entries(loss, given)


def _gradient(loss: Any, given: dict[str, Any], example: Example) -> Tensor:
    """Return the gradient of `token_loss_sparse` with respect to the student's logits, [N, V], by autograd."""
    logits = example.student.detach().to(given["student"].dtype).requires_grad_()
    total = _loss_from_entries(loss, given | {"student": logits.log_softmax(-1)}).sum()
    (found,) = torch.autograd.grad(total, logits)
    return found

"""Losses with formulas and their gradient by the student's logits in one Triton kernel, in few passes over the logits.

A program of the kernel computes a row: it reads both logits once for their log-sum-exps; once more where a divergence's
gradient needs a sum over the vocabulary, as that of every mixture does; and a last time to add up the losses and to
write the gradient over the student's logits. n rows of a block, V shared vocabulary, K losses.

Imported only where Triton is installed; `fusion` decides whether a run uses it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from math import log, log1p

import torch
import triton
import triton.language as tl
from torch import Tensor

from neoplug.training.formula import Formula

COLUMNS = 4096  # of the vocabulary, which a program reads at a time
WARPS = 8


def fused_tile(
    formulas: Sequence[Formula], logits: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor
) -> Tensor:
    """Overwrite `logits` with the gradient of the weighted sum of the losses; return each loss of each token, [K, n].

    formulas  of the losses; all that compare have the same temperature
    logits    [n, V] of the student, of any floating type; float32 inside
    teacher   [n, V] logits of the teacher; None where no formula compares
    labels    [n] int64, columns of the logits
    weights   [K] float32 on the same device
    """
    values = torch.empty(len(formulas), len(logits), device=logits.device)
    if not len(logits):
        return values
    (temperature,) = {float(formula.temperature) for formula in formulas if formula.compares} or {1.0}
    compares = any(formula.compares for formula in formulas)
    mixes = any(formula.share for formula in formulas)
    other = logits if teacher is None else teacher
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        _kernel[(len(logits),)](
            logits, other, labels, weights, values, len(logits), *logits.stride(), *other.stride(), logits.shape[1],
            terms(formulas), compares, mixes, temperature, COLUMNS, triton.next_power_of_2(len(formulas)),
            num_warps=WARPS,
        )  # fmt: skip
    return values


def terms(formulas: Sequence[Formula]) -> tuple[tuple[float, ...], ...]:
    """Return the constants of each formula: factors, share, its logarithm and that of the rest (0 where not used)."""
    return tuple(
        (
            float(formula.teacher), float(formula.student), float(formula.share), float(formula.label),
            float(formula.uniform), log(formula.share) if formula.share else 0.0,
            log1p(-formula.share) if formula.share < 1 else 0.0,
        )
        for formula in formulas
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _running(high, total, logits, SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add a part of a row to the sum of exp(SCALE (z - high)); -inf adds nothing, also in front of all others."""
    higher = tl.maximum(high, tl.max(logits))
    finite = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(SCALE * (high - finite)) + tl.sum(tl.exp(SCALE * (logits - finite)))


@triton.jit  # type: ignore[untyped-decorator]
def _divergence(log_p, log_q, TERMS: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the divergence of formula K at each column, and its derivative by log q there, up to a multiple of q."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    if TERMS[K][2] == 0.0:  # m = q
        value = TERMS[K][0] * tl.where(p > 0, p * (log_p - log_q), 0.0)
        slope = -TERMS[K][0] * p
    elif TERMS[K][2] == 1.0:  # m = p
        value = TERMS[K][1] * tl.where(q > 0, q * (log_q - log_p), 0.0)
        slope = value
    else:
        of_p, of_q = log_p + TERMS[K][5], log_q + TERMS[K][6]
        log_m = tl.maximum(of_p, of_q) + tl.log(1 + tl.exp(-tl.abs(of_p - of_q)))
        to_p, to_q = tl.where(p > 0, log_p - log_m, 0.0), tl.where(q > 0, log_q - log_m, 0.0)
        part = tl.where(q > 0, tl.exp(of_q - log_m), 0.0)  # (1 - share) q / m
        value = TERMS[K][0] * p * to_p + TERMS[K][1] * q * to_q
        slope = TERMS[K][1] * q * (to_q - part) - TERMS[K][0] * p * part
    return value, slope


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    student, teacher, labels, weights, values, rows, student_row, student_column, teacher_row, teacher_column,
    VOCABULARY: tl.constexpr, TERMS: tl.constexpr, COMPARES: tl.constexpr, MIXES: tl.constexpr,
    TEMPERATURE: tl.constexpr, COLUMNS: tl.constexpr, LOSSES: tl.constexpr,
):  # fmt: skip
    SCALE: tl.constexpr = 1.0 / TEMPERATURE
    row = tl.program_id(0).to(tl.int64)
    student += row * student_row
    teacher += row * teacher_row
    label = tl.load(labels + row)
    at_label = tl.load(student + label * student_column).to(tl.float32)

    # 1. log-sum-exps: of the student at temperature 1 and of both at that of the divergences.
    high_q, high_p = float("-inf"), float("-inf")
    total, total_q, total_p, sum_q = 0.0, 0.0, 0.0, 0.0
    for start in range(0, VOCABULARY, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < VOCABULARY
        z_q = tl.load(student + column * student_column, mask=inside, other=float("-inf")).to(tl.float32)
        sum_q += tl.sum(tl.where(inside, z_q, 0.0))
        before = high_q
        high_q, total = _running(before, total, z_q, 1.0)
        if COMPARES:
            high_q, total_q = _running(before, total_q, z_q, SCALE)
            z_p = tl.load(teacher + column * teacher_column, mask=inside, other=float("-inf")).to(tl.float32)
            high_p, total_p = _running(high_p, total_p, z_p, SCALE)
    log_total, log_total_q, log_total_p = tl.log(total), tl.log(total_q), tl.log(total_p)

    # 2. The sum of the derivatives by log q: -1 for KL(p, q), a pass over both for other divergences.
    summed = 0.0
    for k in tl.static_range(len(TERMS)):
        if TERMS[k][2] == 0.0:
            summed -= tl.load(weights + k) * TERMS[k][0]
    if MIXES:
        for start in range(0, VOCABULARY, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < VOCABULARY
            z_q = tl.load(student + column * student_column, mask=inside, other=float("-inf")).to(tl.float32)
            z_p = tl.load(teacher + column * teacher_column, mask=inside, other=float("-inf")).to(tl.float32)
            log_q, log_p = (z_q - high_q) * SCALE - log_total_q, (z_p - high_p) * SCALE - log_total_p
            for k in tl.static_range(len(TERMS)):
                if TERMS[k][2] != 0.0:
                    _, slope = _divergence(log_p, log_q, TERMS, k)
                    summed += tl.load(weights + k) * tl.sum(slope)

    # 3. The losses, and the gradient in place of the student's logits.
    index = tl.arange(0, LOSSES)
    losses = tl.zeros((LOSSES,), tl.float32)
    for start in range(0, VOCABULARY, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < VOCABULARY
        z_q = tl.load(student + column * student_column, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.zeros((COLUMNS,), tl.float32)
        if COMPARES:
            z_p = tl.load(teacher + column * teacher_column, mask=inside, other=float("-inf")).to(tl.float32)
            log_q, log_p = (z_q - high_q) * SCALE - log_total_q, (z_p - high_p) * SCALE - log_total_p
            gradient -= tl.exp(log_q) * summed
            for k in tl.static_range(len(TERMS)):
                if TERMS[k][0] != 0.0 or TERMS[k][1] != 0.0:
                    value, slope = _divergence(log_p, log_q, TERMS, k)
                    losses += tl.where(index == k, tl.sum(value), 0.0)
                    gradient += tl.load(weights + k) * slope
            gradient *= TEMPERATURE
        q = tl.exp(z_q - high_q - log_total)
        for k in tl.static_range(len(TERMS)):
            if TERMS[k][3] != 0.0:
                gradient += tl.load(weights + k) * TERMS[k][3] * (q - tl.where(column == label, 1.0, 0.0))
            if TERMS[k][4] != 0.0:
                gradient += tl.load(weights + k) * TERMS[k][4] * (q - 1.0 / VOCABULARY)
        tl.store(student + column * student_column, gradient.to(student.dtype.element_ty), mask=inside)

    losses *= TEMPERATURE * TEMPERATURE
    for k in tl.static_range(len(TERMS)):
        if TERMS[k][3] != 0.0:
            losses += tl.where(index == k, TERMS[k][3] * (high_q - at_label + log_total), 0.0)
        if TERMS[k][4] != 0.0:
            losses += tl.where(index == k, TERMS[k][4] * (high_q - sum_q / VOCABULARY + log_total), 0.0)
    tl.store(values + index * rows + row, losses, mask=index < len(TERMS))

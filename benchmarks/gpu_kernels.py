"""What a step on a GPU computes by its own kernels, against closed forms in float64: `python gpu_kernels.py [--quick]`.

Prints the largest error of each as JSON, and exits with 1 where one is above its bound. With --quick on the CPU, where
Triton interprets the fused kernel, and what has no kernel there is left out.
"""

import json
import os
import sys
from importlib.util import find_spec
from typing import Any

QUICK = "--quick" in sys.argv
if QUICK:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

DEVICE = "cpu" if QUICK else "cuda"
VOCABULARIES = (512,) if QUICK else (49_152, 128_256, 262_144)
ROWS = 8


def main() -> None:
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    for vocabulary in VOCABULARIES:
        found[f"fused tile, V = {vocabulary}"] = fused_tile(vocabulary)
    found["head into float32"] = "no kernel on the CPU" if QUICK else head()
    found["attention by document"] = "no kernel on the CPU" if QUICK else attention()
    print(json.dumps(found))
    wrong = {name: error for name, error in found.items() if isinstance(error, float) and not error <= BOUND[name[:5]]}
    if wrong:
        raise SystemExit(f"above their bounds: {wrong}")


# Relative to the largest value: sums of float32; products of 8 bits in float32; states rounded to 8 bits.
BOUND = {"fused": 1e-5, "head ": 1e-5, "atten": 2e-2}


def fused_tile(vocabulary: int) -> float | str:
    """Return the largest error of losses and gradient of the four formulas and their weighted sum."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    from neoplug.training.formula import Formula
    from neoplug.training.fused_tile import fused_tile as kernel

    formulas = (
        Formula(teacher=1),
        Formula(student=1, share=1),
        Formula(0.3, 0.7, 0.3),
        Formula(label=0.9, uniform=0.1),
    )
    weights = torch.tensor([0.7, 0.1, 2.0, 0.5], device=DEVICE)
    student, teacher = (3 * torch.randn(ROWS, vocabulary, device=DEVICE) for _ in range(2))
    labels = torch.randint(vocabulary, (ROWS,), device=DEVICE)
    wide = student.double().requires_grad_()
    log_q, log_p = wide.log_softmax(-1), teacher.double().log_softmax(-1)
    expected = torch.stack([formula.value(log_q, log_p, labels) for formula in formulas])
    (weights.double() @ expected).sum().backward()
    values = kernel(formulas, student, teacher, labels, weights)
    assert wide.grad is not None
    return max(error(values, expected.detach()), error(student, wide.grad))


def head() -> float:
    """Return the largest error of logits from bfloat16 states and weights, which the kernel does not round."""
    states, weight = torch.randn(512, 2048, device=DEVICE).bfloat16(), torch.randn(8192, 2048, device=DEVICE).bfloat16()
    return error(torch.mm(states, weight.t(), out_dtype=torch.float32), states.double() @ weight.double().t())


def attention() -> float:
    """Return the largest error of attention by document, with grouped heads and documents of unequal length."""
    from torch.nn.attention.varlen import varlen_attn

    lengths, heads, groups, size = [700, 1, 64, 1283], 32, 8, 64
    offsets = torch.tensor([0, 700, 701, 765, 2048], dtype=torch.int32, device=DEVICE)
    query, key, value = (torch.randn(2048, count, size, device=DEVICE).bfloat16() for count in (heads, groups, groups))
    attend: Any = varlen_attn
    found = attend(query, key, value, offsets, offsets, 1283, 1283, window_size=(-1, 0), enable_gqa=True)
    parts = []
    for q, k, v in zip(*(states.double().split(lengths) for states in (query, key, value)), strict=True):
        q, k, v = q.transpose(0, 1), *(s.transpose(0, 1).repeat_interleave(heads // groups, 0) for s in (k, v))
        scores = (q @ k.mT / size**0.5).masked_fill(
            ~torch.ones(len(q[0]), len(q[0]), device=DEVICE).tril().bool(), -torch.inf
        )
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return error(found, torch.cat(parts))


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()

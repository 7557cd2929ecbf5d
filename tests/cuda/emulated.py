"""Operators that CUDA has and the CPU lacks, in plain arithmetic on tensors of the CPU."""

import itertools

import torch

from tests.cuda.waits import record

HALF = (torch.float16, torch.bfloat16)


def find(function, name):
    """Return what takes the place of an operator; None where the CPU has it."""
    if name == "mm" and function._overloadname == "dtype":
        return mm_into_float32
    return {"_varlen_attn": varlen_attention, "_varlen_attn_backward": varlen_attention_backward}.get(name)


def mm_into_float32(left, right, out_dtype):
    """[n, k] @ [k, m] -> [n, m], by a kernel that takes 16-bit matrices and does not round their product."""
    assert left.dtype == right.dtype, "CUDA takes two matrices of the same type"
    assert (left.dtype in HALF, out_dtype) == (True, torch.float32), "it makes float32 of 16 bits"
    return torch.mm(left.float(), right.float())


def varlen_attention(query, key, value, starts, _, longest, __, causal, scale=None, window=None, *grouped):
    """[T, A, D] and twice [T, G, D] -> [T, A, D], by FlashAttention: each document of a row by itself, in 16 bits."""
    validate_flash(query, key, value, starts, longest, causal, window)
    record("attention", "by document, by FlashAttention")
    output = torch.empty_like(query)
    for rows, states, weights in documents(query, key, value, starts, scale, window):
        output[rows] = (weights @ states[2]).transpose(0, 1).to(query.dtype)
    return output, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def varlen_attention_backward(
    gradient, query, key, value, output, _, starts, __, longest, ___, causal, ____, scale=None, window=None
):
    """Return the gradients by query, key and value: through the softmax, then summed over the heads of a group."""
    gradients = [torch.empty_like(states) for states in (query, key, value)]
    scale = scale or query.shape[-1] ** -0.5
    for rows, (q, k, v), weights in documents(query, key, value, starts, scale, window):
        by_output = gradient[rows].transpose(0, 1).float()
        by_weights = by_output @ v.mT
        by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) * scale
        for total, part in zip(gradients, (by_scores @ k, by_scores.mT @ q, weights.mT @ by_output), strict=True):
            total[rows] = part.unflatten(0, (total.shape[1], -1)).sum(1).transpose(0, 1).to(total.dtype)
    return tuple(gradients)


def documents(query, key, value, starts, scale, window):
    """Yield each document's rows, its states [A, L, D] in float32, and its attention weights [A, L, L]."""
    for start, end in itertools.pairwise(starts.tolist()):
        rows = slice(start, end)
        q, k, v = (states[rows].transpose(0, 1).float() for states in (query, key, value))
        k, v = (states.repeat_interleave(len(q) // len(states), 0) for states in (k, v))
        visible = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if window[0] >= 0:
            visible = visible.triu(-window[0])
        scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
        yield rows, (q, k, v), scores.masked_fill(~visible, -torch.inf).softmax(-1)


def validate_flash(query, key, value, starts, longest, causal, window):
    """Refuse what the kernel refuses, and offsets that are not those of causal documents in one row."""
    head = query.shape[-1]
    assert query.dtype in HALF, "FlashAttention takes 16 bits"
    assert query.dtype == key.dtype == value.dtype
    assert head in range(8, 257, 8), "FlashAttention takes head dimensions of 8, 16, .. 256"
    assert (starts.dtype, int(starts[-1]), int(starts.diff().max())) == (torch.int32, len(query), longest)
    assert (window[1], causal) == (0, window[0] == -1)

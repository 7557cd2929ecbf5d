"""Variable-length attention: computed inside each document of a packed row, in place of one masked computation.

transformers passes a mask of four dimensions to the attention unchanged, so the lengths of a row's documents are passed
in its place; every other layer processes the documents as one row. B rows, A heads, L columns, D head dimension.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from neoplug.data.batch import additive_mask
from neoplug.models.quiet import quiet

Attention = Callable[..., tuple[Tensor, Any]]

LENGTHS = torch.int64  # a mask of this type holds the lengths of a row's documents, [1, 1, 1, documents]
VARLEN = {"sdpa": "neoplug_varlen", "eager": "neoplug_varlen_eager"}
ORIGINAL = {varlen: original for original, varlen in VARLEN.items()}


def use_varlen(model: nn.Module) -> bool:
    """Let a model accept lengths in place of a mask; return False where it does not look its attention up by name."""
    return _switch(model, VARLEN)


def restore_attention(model: nn.Module) -> None:
    """Undo `use_varlen`."""
    _switch(model, ORIGINAL)


def _switch(model: nn.Module, names: dict[str, str]) -> bool:
    inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if inner is None:
        return False
    name = names.get(inner.config._attn_implementation)
    if name is not None:
        with quiet():  # transformers warns where a model does not support it
            inner.set_attn_implementation(name)
    return inner.config._attn_implementation in names.values()


def _varlen(
    attend: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Any]:  # fmt: skip
    """[B, A, L, D] three times -> [B, L, A, D]. Consecutive documents of one length are computed in one call."""
    if attention_mask is None or attention_mask.dtype != LENGTHS:
        return attend(module, query, key, value, attention_mask, **settings)
    runs = [(length, len(list(run))) for length, run in groupby(attention_mask.flatten().tolist())]
    window = settings.get("sliding_window")
    outputs = []
    for parts in zip(*(_split(states, runs) for states in (query, key, value)), strict=True):
        states, _ = attend(module, *parts, _mask(parts[0], window, explicit=attend is _eager), **settings)
        outputs.append(states.flatten(0, 1))
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[None], None


def _split(states: Tensor, runs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[1, A, L, D] -> a view [documents, A, length, D] of each run of documents."""
    pieces = states[0].split([length * count for length, count in runs], dim=1)  # type: ignore[no-untyped-call]
    return [piece.unflatten(1, (count, -1)).transpose(0, 1) for piece, (_, count) in zip(pieces, runs, strict=True)]


def _mask(query: Tensor, window: int | None, explicit: bool) -> Tensor | None:
    """Return the additive mask of one document; None where it is the causal mask, which needs no tensor."""
    length = query.shape[-2]
    if not explicit and (window is None or window >= length):
        return None
    return additive_mask(torch.ones(length, length, dtype=torch.bool, device=query.device).tril(), window, query.dtype)


def _sdpa(module: nn.Module, *states: Any, **settings: Any) -> tuple[Tensor, Any]:
    attend: Attention = AttentionInterface()["sdpa"]
    return attend(module, *states, **settings)


def _eager(module: nn.Module, *states: Any, **settings: Any) -> tuple[Tensor, Any]:
    """Call the eager attention of the module's family, which may have soft caps and sinks."""
    attend: Attention = sys.modules[type(module).__module__].eager_attention_forward
    return attend(module, *states, **settings)


for original, attend in {"sdpa": _sdpa, "eager": _eager}.items():
    AttentionInterface.register(VARLEN[original], partial(_varlen, attend))
    AttentionMaskInterface.register(VARLEN[original], AttentionMaskInterface()[original])

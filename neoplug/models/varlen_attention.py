"""Variable-length attention: computed for each document of a packed row separately, without a mask over the row.

The documents' lengths are passed as the attention mask, since transformers gives a mask of four dimensions to the
attention unchanged. All other layers process the documents as one row.

B rows, A heads, L columns, D head dimension.
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
    """Switch a model to attention that also accepts lengths as the mask; return whether it could be switched.

    It cannot where its attention is not one of VARLEN, or its layers do not call attention by that name.
    """
    return _switch(model, VARLEN)


def restore_attention(model: nn.Module) -> None:
    """Undo `use_varlen`."""
    _switch(model, ORIGINAL)


def _switch(model: nn.Module, names: dict[str, str]) -> bool:
    """Replace the attention implementation by names[implementation]; return whether one of these is now in use."""
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
    """[B, A, L, D] three times -> [B, L, A, D], by the attention function `attend`.

    With lengths as the mask, B is 1, and consecutive documents of the same length are computed in one call.
    """
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
    """Return a document's additive mask; None where the causal mask suffices and `attend` applies it without a tensor.

    explicit  the attention function needs a tensor even for the causal mask
    """
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

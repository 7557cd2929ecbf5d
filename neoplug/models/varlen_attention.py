"""Variable-length attention: computed for each document of a packed row separately, without a mask over the row.

The documents' lengths are passed as the attention mask, since transformers gives a mask of four dimensions to the
attention unchanged. All other layers process the documents as one row.

On a GPU one call of FlashAttention computes all documents of a row in 16 bits, which is all that it takes. Elsewhere
there is one call for each run of documents of the same length.

B rows, A heads, L columns, D head dimension.
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from inspect import signature
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from neoplug.data.batch import additive_mask, to_device
from neoplug.models.quiet import quiet

Attention = Callable[..., tuple[Tensor, Any]]

LENGTHS = torch.int64  # a mask of this type holds the lengths of a row's documents, [1, 1, 1, documents]
VARLEN = {"sdpa": "neoplug_varlen", "eager": "neoplug_varlen_eager"}
ORIGINAL = {varlen: original for original, varlen in VARLEN.items()}
GROUPED_HEADS = "enable_gqa" in signature(varlen_attn).parameters  # older versions of torch take equal numbers of heads
NOT_IN_FLASH = ("dropout", "position_bias", "softcap")  # settings that FlashAttention, as torch offers it, has not


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
    window, lengths = settings.get("sliding_window"), attention_mask.flatten().tolist()
    if attend is _sdpa and _fits_flash(query, settings):
        return _flash(query, key, value, lengths, window, settings.get("scaling")), None
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    outputs = []
    for parts in zip(*(_split(states, runs) for states in (query, key, value)), strict=True):
        states, _ = attend(module, *parts, _mask(parts[0], window, explicit=attend is _eager), **settings)
        outputs.append(states.flatten(0, 1))
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[None], None


def _fits_flash(query: Tensor, settings: dict[str, Any]) -> bool:
    """Return whether FlashAttention takes these states [B, A, L, D] and settings."""
    if not query.is_cuda or any(settings.get(name) for name in NOT_IN_FLASH):
        return False
    return _dtype(query).itemsize == 2 and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _dtype(states: Tensor) -> torch.dtype:
    """Return the type that attention computes in: autocast's, else that of the states."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _flash(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None, scale: float | None
) -> Tensor:
    """[1, A, L, D] three times -> [1, L, A, D], by one call for all documents of the row, without a mask."""
    offsets, longest = _offsets(tuple(lengths), query.device), max(lengths)
    heads = query.shape[1] // key.shape[1]
    if heads > 1 and not GROUPED_HEADS:
        key, value = (states.repeat_interleave(heads, 1) for states in (key, value))
    dtype, options = _dtype(query), {"enable_gqa": True} if heads > 1 and GROUPED_HEADS else {}
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    visible = (-1 if window is None else window - 1, 0)  # tokens before and after a query
    attend: Any = varlen_attn
    output: Tensor = attend(
        query, key, value, offsets, offsets, longest, longest, scale=scale, window_size=visible, **options
    )
    return output[None]


@lru_cache(maxsize=4)  # the layers of a model, and both models, read the same batch
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the index of each document's first token in a row, and the row's length, int32 on `device`."""
    return to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)


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

"""The check of `decode_teacher`: the signal has what losses read, for each answer token of the documents.

N answer tokens, K entries of a token. torch is imported where a tensor is checked, since the hook `check` is called
without it.
"""

from __future__ import annotations

from typing import Any

from neoplug.answers.plain_values import Refusal

LOGITS, SPARSE = "logits", "sparse"  # what a signal may provide
ORDER = "answer tokens are those of the documents, one after the other"


def read_signal(answer: Any, tokens: int | None = None, serves: str | None = None, size: int | None = None) -> Any:
    """Return the signal.

    tokens  answer tokens of the documents; None: not known
    serves  what the plugin serves: with "full" logits, else entries; None: not known
    size    of the shared vocabulary; None: not known

    Raises Refusal for what losses would misread.
    """
    provides = set(getattr(answer, "provides", ()))
    if not {LOGITS, SPARSE} & provides:
        raise Refusal.of(answer, "a signal that provides logits or entries is expected")
    needed = None if serves is None else LOGITS if serves == "full" else SPARSE
    if needed is not None and needed not in provides:
        what = f"with a signal that provides {', '.join(sorted(provides))}, where {needed} is expected"
        raise Refusal(what, f"its class serves {serves!r}")
    if LOGITS in provides:
        _validate("states", getattr(answer, "states", None), 2, tokens)
    else:
        _validate_entries(answer.sparse(slice(None)), tokens, size)
    return answer


def _validate_entries(entries: Any, tokens: int | None, size: int | None) -> None:
    """Refuse entries of other shapes, and ids that are no tokens."""
    _validate("ids", entries.ids, 2, tokens)
    for name, dimensions in (("probabilities", 2), ("entropy", 1), ("rest", 1)):
        _validate(name, getattr(entries, name), dimensions, len(entries.ids))
    if entries.probabilities.shape != entries.ids.shape:
        raise Refusal.of(entries.probabilities, f"shape {list(entries.ids.shape)} is expected", "probabilities")
    if size is None or entries.ids.device.type != "cpu" or not entries.ids.numel():
        return
    for found in (int(entries.ids.min()), int(entries.ids.max())):
        if not 0 <= found < size:
            raise Refusal(f"with the id {found} in a shared vocabulary of {size} tokens")


def _validate(name: str, tensor: Any, dimensions: int, tokens: int | None) -> None:
    """Refuse a part of a signal that has not a row for each answer token; None stands for a part that is left out."""
    from torch import Tensor

    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or tensor.dim() != dimensions:
        raise Refusal.of(tensor, f"a tensor of {dimensions} dimensions is expected", name)
    if tokens is not None and len(tensor) != tokens:
        raise Refusal(
            f"with {len(tensor)} rows in `{name}`, where one for each of {tokens} answer tokens is expected", ORDER
        )

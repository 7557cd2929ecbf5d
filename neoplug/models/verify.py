"""Verification of a loaded model: its head as a function, and a layout that isolates documents.

Before a model is used, two properties are tested on random tokens: the head function equals the model's logits, and the
documents of one row do not influence each other.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import Document, Layout, Windows, collate
from neoplug.errors import RunError
from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel
from neoplug.models.stored_adapter import trigger_tokens, virtual_tokens
from neoplug.models.varlen_attention import restore_attention, use_varlen
from neoplug.models.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Tolerances relative to the largest value. LOGITS: of logits from the same hidden states; STATES: of the hidden states
# of a document in different layouts; EXACT: of the influence of one document on another.
LOGITS = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
STATES = {torch.float32: 1e-3, torch.float16: 4e-2, torch.bfloat16: 1.5e-1}
EXACT = 1e-5

UNSUPPORTED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # raised for an unsupported mask


def head_name(model: nn.Module) -> str:
    """Return the module name of a transformers model's output head, as `lm_head`. Raises RunError without one."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    names = [name for name, module in model.named_modules() if module is head]
    if head is None or not names:
        raise RunError(
            f"{type(model).__name__} has no output head\nwhy: the objective computes logits with it\n"
            "fix: choose a model whose `get_output_embeddings` returns its head"
        )
    return str(names[0])


def language_model(
    module: nn.Module,
    name: str,
    vocabulary: Vocabulary,
    *,
    autocast: torch.dtype | None = None,
    role: str = "student",
    longest: int = 0,
) -> LanguageModel:
    """Return the model split into hidden states and head, both verified, with the first layout that isolates documents.

    name      the head's module name in the unwrapped model, from `head_name`
    autocast  the autocast dtype; None: no autocast
    role      of the model, for messages
    longest   tokens of the longest document: attention windows that are shorter are tested too

    Raises:
        RunError: the head is not found, it does not give the model's logits, or no layout isolates documents.
    """
    heads = [part for path, part in module.named_modules() if path == name or path.endswith(f".{name}")]
    if not heads:
        raise RunError(
            f"the adapter hides the {role}'s output head `{name}`\nwhy: the objective computes logits with it\n"
            "fix: the adapter must keep the output head, or its replacement, under that module name"
        )
    parameter = next(module.parameters())
    whole: Any = getattr(module, "config", None)
    config = whole.get_text_config() if whole is not None else None
    cap, dtype = getattr(config, "final_logit_softcapping", None), autocast or parameter.dtype
    head = Head(heads[0], vocabulary, _multiplier(config), cap, dtype)
    pad = getattr(config, "pad_token_id", None)
    model = LanguageModel(
        module, head, parameter.device, windows=_windows(config), autocast=autocast, pad_token_id=pad if pad else 0
    )
    training = module.training
    module.eval()
    with torch.no_grad():
        _verify_head(model, role)
        model.layout = _isolating_layout(model, role, _sample_length(config, longest))
    module.train(training)
    return model


def _multiplier(config: object) -> float:
    """Return the factor by which a family multiplies its logits."""
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite


def _windows(config: object) -> Windows:
    """Return the window, in tokens, of each kind of attention layer in `layer_types`; None where it has no window."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def _sample_length(config: object, longest: int) -> int:
    """Return a document length at which every attention window shorter than `longest` has an effect."""
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    windows = [window for name in names if isinstance(window := getattr(config, name, None), int) and window < longest]
    return max(9, min(longest, 3 * max(windows, default=0) // 2 + 8))


def _sample(model: LanguageModel, length: int, seed: int, triggers: Sequence[Sequence[int]] = ()) -> Document:
    """Return a document of random tokens of the shared vocabulary, in the middle of which are the sequences `triggers`.

    length  without these sequences
    """
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(model.head.vocabulary.size, (length,), generator=rng)
    ids = model.head.vocabulary.ids
    tokens = drawn if ids is None else ids.cpu()[drawn]
    inserted = torch.tensor([token for sequence in triggers for token in sequence], dtype=torch.int64)
    tokens = torch.cat([tokens[: length // 2], inserted, tokens[length // 2 :]])
    return Document(tokens.numpy(), torch.ones(len(tokens), dtype=torch.bool).numpy(), row=0)


def _verify_head(model: LanguageModel, role: str) -> None:
    """Raise RunError where the head function, on random tokens, does not give the model's own logits."""
    batch = collate([_sample(model, 9, seed=0)]).to(model.device)
    inputs, positions = batch.layout("padded", model.pad_token_id)
    with model.autocast_context():
        logits = model.module(**inputs).logits
    expected = logits[0, -inputs["input_ids"].shape[1] :].float().index_select(0, positions)
    ids = model.head.vocabulary.ids
    shared = slice(model.head.vocabulary.size) if ids is None else ids.to(expected.device)
    expected = expected[:, shared]
    computed = model.head(model._record(inputs, positions))
    if not _relative_difference(computed, expected) <= LOGITS[logits.dtype]:  # false for NaN too
        raise RunError(
            f"neoplug cannot compute the {role}'s logits from its hidden states: "
            f"they differ from the model's own by {(computed - expected).abs().max():.3g}\n"
            "why: the objective computes logits in blocks of tokens, so it calls the head as a function\n"
            "fix: choose another model, or report this model's family"
        )


LAYOUTS: dict[Layout, str] = {
    "varlen": "attention is computed inside each document of a row",
    "flat": "position_ids isolate the documents of a row",
    "block": "a block mask isolates the documents of a row",
    "padded": "each document has its own row",
}


def _isolating_layout(model: LanguageModel, role: str, length: int) -> Layout:
    """Return the first layout that isolates documents; log it, and why those before it are rejected."""
    rejected: list[str] = []
    layouts, tokens = dict(LAYOUTS), virtual_tokens(model.module)
    if tokens:
        layouts = {"padded": LAYOUTS["padded"]}
        rejected.append(
            f"not in one row, since the {tokens} virtual tokens of its adapter are only at the start of a row"
        )
    elif model.device.type not in ("cpu", "cuda") or not _accepts_lengths(model, length):
        layouts.pop("varlen", None)  # on other devices it would be one call for each length
    for layout, description in layouts.items():
        failure = isolation_failure(replace(model, layout=layout), length)
        if failure is None:
            logger.info("%s: layout %s, %s%s", role, layout, description, "".join(f"; {why}" for why in rejected))
            return layout
        rejected.append(f"not {layout}, since {failure}")
        if layout == "varlen":
            restore_attention(model.module)
    raise RunError(
        f"no layout isolates the documents of a batch in the {role}\n"
        f"why: what it computes for a document would depend on the others in the batch ({'; '.join(rejected)})\n"
        "fix: choose another model"
    )


def _accepts_lengths(model: LanguageModel, length: int) -> bool:
    """Switch the model to variable-length attention; undo it and return False where its results on a mask change."""
    padded, batch = replace(model, layout="padded"), collate([_sample(model, length, seed=4)]).to(model.device)
    before = padded.hidden(batch)
    if not use_varlen(model.module):
        return False
    try:
        if _relative_difference(padded.hidden(batch), before) <= EXACT:
            return True
    except UNSUPPORTED:
        pass  # its layers do not all use the same attention implementation
    restore_attention(model.module)
    return False


def isolation_failure(model: LanguageModel, length: int) -> str | None:
    """Return why the model's layout does not isolate two documents; None where it does.

    The hidden states of each must equal those of the document alone, and those of the second, of `length` tokens, must
    not change when the first is replaced.
    """
    triggers = trigger_tokens(model.module)
    first, second = _sample(model, 6, 1, triggers), _sample(model, length, 3, triggers)
    other = _sample(model, len(first), 2)  # without the tokens that an adapter looks for
    try:
        together, replaced = (model.hidden(collate([document, second]).to(model.device)) for document in (first, other))
    except UNSUPPORTED as error:
        if model.layout == "padded":
            raise
        return f"the model does not support it ({type(error).__name__})"
    padded = replace(model, layout="padded")
    alone = torch.cat([padded.hidden(collate([document]).to(model.device)) for document in (first, second)])
    change = _relative_difference(together[len(first) - 1 :], replaced[len(first) - 1 :])
    if not change <= EXACT:  # false for NaN too
        return f"one document changes another's hidden states by {change:.2g} of the largest"
    difference = _relative_difference(together, alone)
    if not difference <= STATES[model.autocast or alone.dtype]:
        return f"a document's hidden states differ by {difference:.2g} of the largest from those of the document alone"
    return None


def _relative_difference(computed: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((computed.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6))

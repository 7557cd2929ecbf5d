"""Verification of a loaded model: its head as a function, and a layout that isolates documents.

Nothing is taken on trust: that the head function equals the model's own logits, and that documents of one row do not
influence each other, is verified on the loaded model before it is used.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import Document, Layout, Windows, collate
from neoplug.errors import RunError
from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel
from neoplug.models.stored_adapter import virtual_tokens
from neoplug.models.varlen_attention import restore_attention, use_varlen
from neoplug.models.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# How much two computations of one thing may differ, relative to its largest value: logits of the same hidden states,
# and hidden states of the same document laid out differently. That documents do not move each other is held to EXACT.
LOGITS = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}


STATES = {torch.float32: 1e-3, torch.float16: 4e-2, torch.bfloat16: 1.5e-1}


EXACT = 1e-5


CANNOT_READ = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # what models raise of a strange mask


def head_name(model: nn.Module) -> str:
    """Return where the output head stands in a bare transformers model, as `lm_head`. Raises RunError without one."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    names = [name for name, module in model.named_modules() if module is head]
    if head is None or not names:
        raise RunError(
            f"{type(model).__name__} shows no output head\nwhy: without it no token can be scored\n"
            "fix: choose a model whose `get_output_embeddings` returns its head"
        )
    return names[0]


def language_model(
    module: nn.Module,
    name: str,
    vocabulary: Vocabulary,
    *,
    autocast: torch.dtype | None = None,
    role: str = "student",
    longest: int = 0,
) -> LanguageModel:
    """Find the head called `name` in the bare model, prove it and the way documents are kept apart.

    longest  tokens of the longest document that the model will read: a window of attention that is shorter is proved

    Raises:
        RunError: the head function does not equal the model's own logits, or no layout isolates documents.
    """
    found = [part for path, part in module.named_modules() if path == name or path.endswith(f".{name}")]
    if not found:
        raise RunError(
            f"the adapter hides the {role}'s output head `{name}`\nwhy: the objective needs it to score tokens\n"
            "fix: let the adapter keep the base model, or its own head, under that name"
        )
    parameter = next(module.parameters())
    own: Any = getattr(module, "config", None)
    config = own.get_text_config() if own is not None else None
    head = Head(found[0], vocabulary, _multiplier(config), getattr(config, "final_logit_softcapping", None))
    pad = getattr(config, "pad_token_id", None)
    model = LanguageModel(
        module, head, parameter.device, windows=_windows(config), autocast=autocast, pad_token_id=pad if pad else 0
    )
    training = module.training
    module.eval()
    with torch.no_grad():
        _prove_head(model, role)
        model.layout = _isolating_layout(model, role, _proving_length(config, longest))
    module.train(training)
    return model


def _multiplier(config: object) -> float:
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite


def _windows(config: object) -> Windows:
    """Return how far each kind of attention layer looks back, as transformers names the kinds."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def _proving_length(config: object, longest: int) -> int:
    """Return how long a document must be to show a window of attention, where the data's documents are longer."""
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    windows = [window for name in names if isinstance(window := getattr(config, name, None), int) and window < longest]
    return max(9, min(longest, 3 * max(windows, default=0) // 2 + 8))


def _sample(model: LanguageModel, length: int, seed: int) -> Document:
    """Return a document of random tokens that both models know."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(model.head.vocabulary.size, (length,), generator=rng)
    ids = model.head.vocabulary.ids
    tokens = drawn if ids is None else ids.cpu()[drawn]
    return Document(tokens.numpy(), torch.ones(length, dtype=torch.bool).numpy(), row=0)


def _prove_head(model: LanguageModel, role: str) -> None:
    batch = collate([_sample(model, 9, seed=0)]).to(model.device)
    inputs, positions = batch.layout("padded", model.pad_token_id)
    with model.computing():
        logits = model.module(**inputs).logits
    own = logits[0, -inputs["input_ids"].shape[1] :].float().index_select(0, positions)
    ids = model.head.vocabulary.ids
    own = own[:, : model.head.vocabulary.size] if ids is None else own.index_select(-1, ids.to(own.device))
    ours = model.head(model._record(inputs, positions))
    if not _off(ours, own) <= LOGITS[logits.dtype]:  # NaN is no proof either
        raise RunError(
            f"the {role}'s head is no function of its hidden states that neoplug knows: "
            f"it differs from the model's own logits by {(ours - own).abs().max():.3g}\n"
            "why: the objective never holds the vocabulary, so it needs the head as a function\n"
            "fix: choose another model, or ask for this family"
        )


LAYOUTS: dict[Layout, str] = {
    "varlen": "attention is computed inside each document of one row",
    "flat": "position_ids keep documents of one row apart",
    "block": "a block mask keeps documents of one row apart",
    "padded": "each document has a row of its own",
}


def _isolating_layout(model: LanguageModel, role: str, length: int) -> Layout:
    """Return the first layout under which documents do not see each other; say which, and why none before it."""
    refused: list[str] = []
    layouts, tokens = dict(LAYOUTS), virtual_tokens(model.module)
    if tokens:
        layouts = {"padded": LAYOUTS["padded"]}
        refused.append(f"not in one row, since the {tokens} virtual tokens of its adapter stand before a row alone")
    elif model.device.type != "cpu" or not _takes_lengths(model, length):
        layouts.pop("varlen", None)  # on a GPU its calls, one for each length, would have to be measured first
    for layout, means in layouts.items():
        found = isolation_failure(replace(model, layout=layout), length)
        if found is None:
            logger.info("%s: layout %s, %s%s", role, layout, means, "".join(f"; {why}" for why in refused))
            return layout
        refused.append(f"not {layout}, since {found}")
        if layout == "varlen":
            restore_attention(model.module)
    raise RunError(
        f"the {role} reads a document differently beside another, in one row and in padded rows\n"
        f"why: then what it learns depends on how documents fall together ({'; '.join(refused)})\n"
        "fix: choose another model"
    )


def _takes_lengths(model: LanguageModel, length: int) -> bool:
    """Let the model attend inside documents where lengths say so; tell whether all else is as it was."""
    padded, batch = replace(model, layout="padded"), collate([_sample(model, length, seed=4)]).to(model.device)
    before = padded.hidden(batch)
    if not use_varlen(model.module):
        return False
    try:
        if _off(padded.hidden(batch), before) <= EXACT:
            return True
    except CANNOT_READ:
        pass  # parts of it attended in different ways
    restore_attention(model.module)
    return False


def isolation_failure(model: LanguageModel, length: int) -> str | None:
    """Return how two documents disturb each other in the model's layout; None where it is proved that they do not.

    Each must be read as if alone, and the second, of `length` tokens, not be moved at all by what the first says.
    """
    first, other, second = (_sample(model, n, seed) for n, seed in ((6, 1), (6, 2), (length, 3)))
    try:
        beside, changed = (model.hidden(collate([document, second]).to(model.device)) for document in (first, other))
    except CANNOT_READ as error:
        if model.layout == "padded":
            raise
        return f"the model cannot read it ({type(error).__name__})"
    padded = replace(model, layout="padded")
    alone = torch.cat([padded.hidden(collate([document]).to(model.device)) for document in (first, second)])
    moved = _off(beside[len(first) - 1 :], changed[len(first) - 1 :])
    if not moved <= EXACT:  # NaN is no proof either
        return f"one document moves another's states by {moved:.2g} of the largest"
    off = _off(beside, alone)
    if not off <= STATES[model.autocast or alone.dtype]:
        return f"a document's states are {off:.2g} of the largest off what they are alone"
    return None


def _off(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6))

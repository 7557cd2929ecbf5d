"""The key of a teacher's cache: the hash of everything that the stored output of a document depends on."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from neoplug.data.store.key import tokenizer_identity
from neoplug.files import content_hash, sha256_of

if TYPE_CHECKING:
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.inputs import RunInputs


def parts_of_key(checked: ResolvedRecipe, inputs: RunInputs, dtype: torch.dtype) -> dict[str, Any]:
    """Return, by name, what the records of the recipe's cache depend on, but for the documents.

    dtype  of the teacher's computation
    """
    assert inputs.teacher is not None
    adapter, loads = inputs.teacher.adapter, checked.plugins
    changing = {*loads.named("load_kwargs"), *loads.named("after_load")}
    (kind,) = loads.named("encode_teacher")
    others = ("student.load", "probes")  # probes do not change a model that they are given after it is loaded
    return {
        "model": inputs.teacher.identity,
        "adapter": adapter and adapter.sha256,
        "load": [plugin_identity(checked, *named) for named in sorted(changing) if named[0] not in others],
        "dtype": str(dtype).removeprefix("torch."),
        "tokenizer": content_hash(tokenizer_identity(inputs.teacher_tokenizer)),
        "kind": plugin_identity(checked, *kind),
        "vocabulary": vocabulary_hash(inputs.vocabulary) if reads_logits(checked) else None,
    }


def reads_logits(checked: ResolvedRecipe) -> bool:
    """Return whether the kind of cache stores what depends on the vocabulary that the models share."""
    (function,) = checked.plugins.functions("encode_teacher").values()
    return "logits" in function.arguments  # type: ignore[attr-defined]


def vocabulary_hash(vocabulary: Vocabulary) -> str:
    """Return the hash of the token ids that two models share."""
    ids = None if vocabulary.ids is None else hashlib.sha256(vocabulary.ids.numpy().tobytes()).hexdigest()
    return content_hash([vocabulary.size, ids])


def plugin_identity(checked: ResolvedRecipe, section: str, name: str) -> dict[str, Any]:
    """Return class and options of a plugin, the hash of its file, and the `format` of what it stores.

    An upgrade of a package keeps what is stored; a plugin whose output changes says so by another `format`.
    """
    entry, plugin = checked.entries[section, name], checked.plugins.section(section)[name]
    return {
        "class": type(plugin).__qualname__ if entry.file else entry.target,
        "file": sha256_of(entry.file) if entry.file else None,
        "format": getattr(plugin, "format", 1),
        "options": {option.name: repr(getattr(plugin, option.name)) for option in fields(plugin) if option.init},
    }

"""The tokenizer with the chat template that a student was trained with (`data.chat_template`).

Where this template is not that of the base, the tokenizer is stored with the adapter, so that it goes wherever the
adapter goes. Models that are stored whole always have their tokenizer.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from neoplug.models.load import load_tokenizer
from neoplug.models.reference import ResolvedModel
from neoplug.runs.directory import RunDir

logger = logging.getLogger(__name__)
FILE = "tokenizer_config.json"  # each saved tokenizer has it


def has_other_template(tokenizer: Any, base: ResolvedModel) -> bool:
    """Return whether a tokenizer has another chat template than that of the base."""
    return bool(tokenizer.chat_template != load_tokenizer(base).chat_template)


def stored_tokenizer(directory: RunDir) -> Path | None:
    """Return the folder of a run that has the tokenizer with the trained template; None where it is the base's."""
    return next((path for path in (directory.adapter, directory.model) if (path / FILE).is_file()), None)


def tokenizer_of(directory: RunDir, base: ResolvedModel) -> Any:
    """Return the tokenizer with the chat template that the run's student was trained with; log where it differs."""
    folder = stored_tokenizer(directory)
    if folder is None:
        return load_tokenizer(base)
    tokenizer = load_tokenizer(replace(base, path=str(folder), revision=None, kind="local"))
    if has_other_template(tokenizer, base):
        log_template(base)
    return tokenizer


def log_template(base: ResolvedModel) -> None:
    """Log that the template of the student is not that of its base."""
    logger.info("the student's chat template is data.chat_template, which is not that of %s; it is saved", base.source)

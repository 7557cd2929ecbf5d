"""What a push publishes of a finished run: adapter or model, prepared base, card, recipe, lock, result and metrics."""

import hashlib
from pathlib import Path

from neoplug.runs.directory import as_json, as_yaml
from neoplug.runs.model_card import card
from neoplug.runs.public_files import (
    CARD,
    Content,
    measured_files,
    open_recorded,
    recorded_files,
    set_base,
    trained_files,
)
from neoplug.runs.publishable import publishable


def staged(path: Path, repository: str) -> dict[str, Content]:
    """Return the files to publish of the finished run `path`: name in the repository -> content.

    Where the adapter's base is published too, both are in subfolders: transformers would apply an adapter at the root
    of the repository to the base that it loads from there.

    Raises:
        UsageError: `path` is not a finished run, or its files are not those that it wrote.
    """
    run, result = open_recorded(path)
    if run.adapter.is_dir() and run.student.is_dir():
        files = recorded_files(run, run.adapter, "adapter/") | recorded_files(run, run.student, "student/")
        set_base(files, "adapter/", repository, None)
    else:
        files = trained_files(run)
    files[CARD] = card(run, result, repository).encode()
    files["recipe.yaml"] = as_yaml(publishable(run.resolved)).encode()
    files["lock.json"] = as_json(publishable(run.lock)).encode()
    return files | measured_files(run, result)


def digest(content: Content, algorithm: str, start: bytes = b"") -> str:
    """Return the hex digest of `start` and the content."""
    found = hashlib.new(algorithm, start, usedforsecurity=False)
    if isinstance(content, bytes):
        found.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    return found.hexdigest()


def size(content: Content) -> int:
    """Return the number of bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size

"""What a push publishes of a finished run: adapter or model, prepared base, card, recipe, lock, result and metrics."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

from neoplug.errors import DamageError, UsageError
from neoplug.files import contents, read_json
from neoplug.models.reference import CONFIG, RECORD
from neoplug.runs.directory import RunDir, as_json, as_yaml
from neoplug.runs.model_card import card
from neoplug.runs.publishable import publishable, without_text
from neoplug.runs.result import RunResult
from neoplug.runs.run_files import RESTORE

Content: TypeAlias = Path | bytes  # a file that is published as it is, or the contents of one that is made for the push

CARD = "README.md"
BASES = ("base_model_name_or_path", "tokenizer_name_or_path")  # fields of peft's configuration that name the base
OWN_TEXTS = ("status", "reason", "remarks", "best")  # fields of result.json with texts of neoplug itself


def staged(path: Path, repository: str) -> dict[str, Content]:
    """Return the files to publish of the finished run `path`: name in the repository -> content.

    Where the adapter's base is published too, both are in subfolders: transformers would apply an adapter at the root
    of the repository to the base that it loads from there.

    Raises:
        UsageError: `path` is not a finished run, or its files are not those that it wrote.
    """
    run, result = open_for_push(path)
    if run.adapter.is_dir() and run.student.is_dir():
        files = _files(run, run.adapter, "adapter/") | _files(run, run.student, "student/")
        _set_base(files, "adapter/", repository, None)
    else:
        files = trained_files(run)
    files[CARD] = card(run, result, repository).encode()
    files["recipe.yaml"] = as_yaml(publishable(run.resolved)).encode()
    files["lock.json"] = as_json(publishable(run.lock)).encode()
    return files | measured_files(run, result)


def trained_files(run: RunDir, prefix: str = "") -> dict[str, Content]:
    """Return the files of a run's adapter, or of its model; an adapter names its base where that is on the hub."""
    base = run.lock["models"]["student"]
    files = _files(run, run.adapter if run.adapter.is_dir() else run.model, prefix)
    _set_base(files, prefix, base["source"] if base["revision"] else None, base["revision"])
    return files


def measured_files(run: RunDir, result: RunResult) -> dict[str, Content]:
    """Return result and metrics of a run without text, which may quote the data."""
    lines = "".join(json.dumps(without_text(line)) + "\n" for line in run.metrics.read())
    return {"result.json": as_json(_public_result(result)).encode(), "metrics.jsonl": lines.encode()}


def open_for_push(path: Path) -> tuple[RunDir, RunResult]:
    """Return a finished run and its result.

    Raises:
        UsageError: `path` is not a finished run.
        DamageError: a file is damaged, or was not recorded, so that it may not be what was trained.
    """
    run = RunDir.open_finished(path)
    run.verify("metrics.jsonl")
    if (result := run.result) is None:
        raise UsageError(f"{path} is not finished\nwhy: it has no result.json\nfix: --resume it")
    if not run.is_recorded:
        fix = f"restore it; or remove {path / 'result.json'}, and go on with --resume: the run saves its student again"
        raise DamageError(path / contents.RECORD, "does not name the files of the student, so none is published", fix)
    return run, result


def _files(run: RunDir, folder: Path, prefix: str = "") -> dict[str, Content]:
    """Return the files that the run wrote below a folder, without its own card and the records of its origin.

    Links, and files that the record of the run's contents does not name, are not published.
    """
    left_out = (CARD, RECORD, contents.RECORD)
    written = contents.recorded(run.path)
    return {
        prefix + file.relative_to(folder).as_posix(): file
        for file in contents.files_below(folder)
        if file.name not in left_out and not file.is_symlink()
        if file.relative_to(run.path).as_posix() in written
    }


def _set_base(files: dict[str, Content], prefix: str, source: str | None, revision: str | None) -> None:
    """Let the adapter's configuration name its base by hub id and commit; None: the base is local and has no name."""
    config = files.get(prefix + CONFIG)
    if not isinstance(config, Path):
        return
    values = publishable(read_json(config, RESTORE))
    values |= {name: source for name in BASES if values.get(name)} | {"revision": revision}
    files[prefix + CONFIG] = as_json(values).encode()


def _public_result(result: RunResult) -> dict[str, Any]:
    """Return the content of result.json without held-out text: the sample, and texts among a plugin's measurements."""
    return {
        name: publishable(value) if name in OWN_TEXTS else without_text(value)
        for name, value in result.as_dict().items()
        if name in OWN_TEXTS or not (name == "sample" or isinstance(value, str))
    }


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

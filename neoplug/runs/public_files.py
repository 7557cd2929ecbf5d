"""The files of a finished run that may be given to others: what it trained and measured, without paths and texts."""

import json
from pathlib import Path
from typing import Any, TypeAlias

from neoplug.errors import DamageError, UsageError
from neoplug.files import contents, read_json
from neoplug.models.reference import CONFIG, RECORD
from neoplug.runs.directory import RunDir, as_json
from neoplug.runs.publishable import publishable, without_text
from neoplug.runs.result import RunResult
from neoplug.runs.run_files import RESTORE

Content: TypeAlias = Path | bytes  # a file that is given as it is, or the contents of one that is made for others

CARD = "README.md"
BASES = ("base_model_name_or_path", "tokenizer_name_or_path")  # fields of peft's configuration that name the base
OWN_TEXTS = ("status", "reason", "remarks", "best")  # fields of result.json with texts of neoplug itself


def open_recorded(path: Path) -> tuple[RunDir, RunResult]:
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


def trained_files(run: RunDir, prefix: str = "") -> dict[str, Content]:
    """Return the files of a run's adapter, or of its model; an adapter names its base where that is on the hub."""
    base = run.lock["models"]["student"]
    files = recorded_files(run, run.adapter if run.adapter.is_dir() else run.model, prefix)
    set_base(files, prefix, base["source"] if base["revision"] else None, base["revision"])
    return files


def measured_files(run: RunDir, result: RunResult) -> dict[str, Content]:
    """Return result and metrics of a run without text, which may quote the data."""
    lines = "".join(json.dumps(without_text(line)) + "\n" for line in run.metrics.read())
    return {"result.json": as_json(_public_result(result)).encode(), "metrics.jsonl": lines.encode()}


def recorded_files(run: RunDir, folder: Path, prefix: str = "") -> dict[str, Content]:
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


def set_base(files: dict[str, Content], prefix: str, source: str | None, revision: str | None) -> None:
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

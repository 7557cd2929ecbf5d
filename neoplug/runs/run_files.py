"""Reading of the files of a run directory: one reader a file, and whatever is wrong with a file is one error.

The recipe, the lock and the result are maps whose keys that neoplug reads have a schema here or in `runs.result`;
other keys are kept. Whether a file is as the run wrote it is another question: `RunDir.verify`.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neoplug.errors import DamageError
from neoplug.files import parse_map, read_json, read_text

LARGEST_RECIPE = 2**20  # bytes
DEEPEST = 100  # maps and lists inside each other
RESTORE = "restore it from a copy, or start a new run"
SAVED_AGAIN = "restore it from a copy; or remove {}, and go on with --resume: the run saves it again"
Content = TypeVar("Content", bound=BaseModel)


class _Content(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Content):
    model: str


class _Teacher(_Content):
    model: str | None = None
    itself: str | None = Field(None, alias="self")


class _Recipe(_Content):
    student: _Model
    teacher: _Teacher | None = None
    data: dict[str, Any]
    adapter: dict[str, dict[str, Any] | None]
    loss: dict[str, Any]
    evaluate: dict[str, Any] = {}
    seed: int = 0


class _LockedAdapter(_Content):
    source: str
    revision: str | None
    sha256: str | None


class _LockedModel(_LockedAdapter):
    adapter: _LockedAdapter | None = None
    cache: dict[str, str] | None = None


class _LockedItself(_Content):
    itself: str = Field(alias="self")


class _LockedModels(_Content):
    student: _LockedModel
    teacher: _LockedModel | _LockedItself | None = None


class _LockedData(_Content):
    fingerprint: str
    chat_template_date: str | None = None


class _Hardware(_Content):
    cpu: str
    gpus: list[str]


class _Computation(_Content):
    device: str
    dtypes: dict[str, str]
    ranks: int = Field(ge=1)
    threads: int


class _Lock(_Content):
    """What a lock holds; recipe and computation are absent in locks of neoplug before they were recorded."""

    format: Literal[1]
    recipe: _Recipe | None = None
    seed: int
    platform: str
    versions: dict[str, str | None]
    hardware: _Hardware
    computation: _Computation | None = None
    plugins: dict[str, dict[str, Any]] = {}
    models: _LockedModels
    data: _LockedData
    commits: dict[str, str] = {}


def read_recipe(file: Path) -> dict[str, Any]:
    """Return a run's resolved recipe. Raises DamageError."""
    try:
        recipe = _parse_yaml(read_text(file, LARGEST_RECIPE))
    except ValueError as error:
        raise DamageError(file, str(error), RESTORE) from error
    validated(_Recipe, recipe, file, RESTORE)
    return recipe


def _parse_yaml(text: str) -> dict[str, Any]:
    """Return the map that a YAML text without aliases holds. Raises ValueError, which says what is wrong."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
                raise ValueError("is nested too deeply" if depth > DEEPEST else "has aliases, which no run writes")
        value = yaml.load(text, yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"is not YAML: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise ValueError("does not hold a map of sections")
    return value


def read_lock(file: Path) -> dict[str, Any]:
    """Return a run's lock. Raises DamageError."""
    lock = read_json(file, RESTORE)
    validated(_Lock, lock, file, RESTORE)
    return lock


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl. Raises DamageError."""
    return _parsed(file, lines_of(file))


def _parsed(file: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    try:
        return [parse_map(line, number) for number, line in enumerate(lines, 1)]
    except ValueError as error:
        raise DamageError(file, str(error), RESTORE) from error


def lines_of(file: Path) -> list[str]:
    """Return the lines of metrics.jsonl as text; a last one that a killed process cut is left out."""
    if not file.exists():
        return []
    try:
        return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        raise DamageError(file, f"cannot be read: {error.strerror}", RESTORE) from error


def digest_of(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of metrics.jsonl."""
    return sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def validate_steps(file: Path, steps: int, digest: str | None, checkpoints: Path) -> None:
    """Raise DamageError where metrics.jsonl does not have the lines of steps 1 to `steps` as they were written.

    digest  of these lines; None in checkpoints of neoplug before this was recorded
    """
    text = lines_of(file)[:steps]
    lines = _parsed(file, text)
    fix = f"restore it; or remove {checkpoints}, and the run begins again at step 0 with --resume"
    for step in range(1, steps + 1):
        line = lines[step - 1] if step <= len(lines) else {}
        if line.get("step") != step or not all(isinstance(line.get(key), int) for key in ("tokens", "answer_tokens")):
            raise DamageError(file, f"lacks the line of step {step}, but the run was at step {steps}", fix)
    if digest not in (None, digest_of(text)):
        raise DamageError(file, f"changed since the checkpoint of step {steps} was written", fix)


def validated(schema: type[Content], values: Mapping[str, Any], file: Path, fix: str) -> Content:
    """Return the content of `file` by its schema. Raises DamageError, which names the first key that is wrong."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in ("_LockedModel", "_LockedItself"))
        raise DamageError(file, f"is not what this neoplug writes: `{key}`: {first['msg']}", fix) from error

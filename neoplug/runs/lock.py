"""The lock of a run: recipe, versions, hardware, content hashes of models, data and plugins; and how two differ."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neoplug.environment.info import hardware, versions
from neoplug.errors import Path
from neoplug.registry.nested import leaves

if TYPE_CHECKING:
    from neoplug.models.reference import ResolvedModel
    from neoplug.recipe import Data, ResolvedRecipe
    from neoplug.registry import Entry


FORMAT = 1


def lock_record(
    checked: ResolvedRecipe,
    models: Mapping[str, ResolvedModel | None],
    fingerprint: str,
    day: str | None = None,
    weights: Mapping[str, str | None] | None = None,
    commits: Mapping[str, str] | None = None,
    chosen: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return a run's lock: versions, hardware, plugins, `models` by role, `fingerprint` of the tokenised data.

    `recipe` is as it was given; `pinned` returns what it did not name.

    day      the date that a chat template read, YYYY-MM-DD: a resumed run renders its rows with the same; None: none
    weights  role -> hash of the weights that are loaded, where neoplug converted or prepared them; else None
    chosen   key of the section `train` that is auto -> the number that the run has; none where there is no such key
    commits  source -> commit, of datasets of the hub. It is not in `data`: a new commit with the same data is no change
    """
    taught_by = checked.recipe.taught_by
    made = {role: {"weights_sha256": digest} for role, digest in (weights or {}).items() if digest}
    return {
        "format": FORMAT,
        "recipe": checked.resolved(),
        "versions": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "seed": checked.recipe.seed,
        "plugins": {
            f"{section}.{name}": _plugin_record(entry) for (section, name), entry in sorted(checked.entries.items())
        },
        "models": {
            **{
                role: _model_record(located) | made.get(role, {}) for role, located in sorted(models.items()) if located
            },
            **({"teacher": {"self": taught_by}} if taught_by else {}),
        },
        "data": {
            "fingerprint": fingerprint,
            **_data_record(checked.recipe.data),
            **({"chat_template_date": day} if day else {}),
        },
        **({"commits": dict(commits)} if commits else {}),
        **({"chosen": dict(chosen)} if chosen else {}),
    }


def found_contents(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return a lock without what the recipe names: versions, hardware, and the content of models, data and plugins."""
    data = {key: lock["data"].get(key) for key in ("fingerprint", "chat_template_date")}
    return {key: value for key, value in lock.items() if key not in ("recipe", "chosen")} | {"data": data}


def with_newer_keys(recipe: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe of an older neoplug with the keys that it had not, where another recipe has their defaults.

    The default of a new key is what an older neoplug did.
    """
    from neoplug.recipe import Data, Evaluate, Student, Train
    from neoplug.recipe.schema import Teacher

    sections: dict[str, Any] = {
        "teacher": Teacher,
        "student": Student,
        "data": Data,
        "train": Train,
        "evaluate": Evaluate,
    }
    completed = dict(recipe)
    for name, section in sections.items():
        before, now = recipe.get(name), newer.get(name)
        if before is not None and now is not None:
            defaults = {key: field.default for key, field in section.model_fields.items() if key not in before}
            completed[name] = before | {key: now[key] for key in defaults.keys() & now if now[key] == defaults[key]}
    return completed


def pinned(lock: Mapping[str, Any]) -> dict[Path, Any]:
    """Return what a run used and its recipe need not name, by its key in a recipe.

    It is the commit of each model, adapter and data set of the hub, the date that a chat template read, and the sizes
    that were chosen for `auto`.
    """
    recipe, models = lock["recipe"], lock["models"]
    found: dict[Path, Any] = {("train", key): size for key, size in lock.get("chosen", {}).items()}
    for role, model in models.items():
        if (recipe.get(role) or {}).get("model"):
            found[role, "revision"] = model.get("revision")
            found[role, "adapter_revision"] = (model.get("adapter") or {}).get("revision")
    for name, commit in lock.get("commits", {}).items():
        if name == "source":
            found["data", "revision"] = commit
        elif name in (recipe["data"].get("sources") or {}):
            found["data", "sources", name, "revision"] = commit
        elif recipe["data"].get("eval_source"):
            found["data", "eval_revision"] = commit
    found["data", "chat_template_date"] = lock["data"].get("chat_template_date")
    return {path: value for path, value in found.items() if value}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that differs, such as "train.max_steps: 10 -> 20"; the order of keys is ignored."""
    before, after = ({".".join(map(str, path)): value for path, value in leaves(record)} for record in (old, new))
    return [
        f"{key}: {_as_json(before, key)} -> {_as_json(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _as_json(before, key) != _as_json(after, key)
    ]


def _as_json(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"


def _plugin_record(entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"package": entry.package, "version": entry.version, "target": entry.target}
    if digest := entry.sha256:
        record["sha256"] = digest
    return record


def _data_record(data: Data) -> dict[str, Any]:
    """Return what the recipe names of its data beyond the sources; a key that it does not set is left out."""
    named = {
        name or "source": {key: value for key in ("name", "revision") if (value := getattr(source, key)) is not None}
        for name, source in data.parts.items()
    }
    record = {"sources": {name: keys for name, keys in named.items() if keys}}
    return {
        key: value for key, value in (record | {"chat_template_kwargs": data.chat_template_kwargs}).items() if value
    }


def _model_record(located: ResolvedModel) -> dict[str, Any]:
    record: dict[str, Any] = {"source": located.source, "revision": located.revision, "sha256": located.sha256}
    if adapter := located.adapter:
        record["adapter"] = {"source": adapter.source, "revision": adapter.revision, "sha256": adapter.sha256}
    return record

"""The lock of a run: versions, hardware, content hashes of models, data and plugin files; and how two locks differ."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neoplug.environment.info import hardware, versions
from neoplug.files import sha256_of
from neoplug.registry.nested import leaves

if TYPE_CHECKING:
    from neoplug.models.reference import ResolvedModel
    from neoplug.recipe import ResolvedRecipe
    from neoplug.registry import Entry


FORMAT = 1


def lock_record(
    checked: ResolvedRecipe, models: Mapping[str, ResolvedModel | None], fingerprint: str
) -> dict[str, Any]:
    """Return a run's lock: versions, hardware, plugins, `models` by role, `fingerprint` of the tokenised data."""
    return {
        "format": FORMAT,
        "versions": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "seed": checked.recipe.seed,
        "plugins": {f"{section}.{name}": _plugin(entry) for (section, name), entry in sorted(checked.entries.items())},
        "models": {role: _model(located) for role, located in sorted(models.items()) if located},
        "data": {"fingerprint": fingerprint},
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that differs, as "train.max_steps: 10 -> 20"; the order of keys is no difference."""
    before, after = ({".".join(map(str, path)): value for path, value in leaves(lock)} for lock in (old, new))
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"


def _plugin(entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"package": entry.package, "version": entry.version, "target": entry.target}
    if entry.file:
        record["sha256"] = sha256_of(entry.file)
    return record


def _model(located: ResolvedModel) -> dict[str, Any]:
    record: dict[str, Any] = {"source": located.source, "revision": located.revision, "sha256": located.sha256}
    if found := located.adapter:
        record["adapter"] = {"source": found.source, "revision": found.revision, "sha256": found.sha256}
    return record

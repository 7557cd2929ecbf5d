"""What differs between the lock of a run and this machine, and what each difference may change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neoplug.registry.discovery import SHIPPED
from neoplug.registry.nested import leaves
from neoplug.runs.lock import with_newer_keys
from neoplug.runs.publishable import publishable

# Keys of a recipe that have no part in its results, and keys in its sections whose content is compared.
NO_PART = ("output_dir", "report_to", "trackers", "reference")
BY_CONTENT = {
    *("model", "revision", "adapter_path", "adapter_revision"),
    *("source", "eval_source", "eval_revision", "chat_template_date"),
}
_FILE = re.compile(r"(?:^|(?<=\.))[./~][^:]*/(?=[^/:]*\.py:)")  # the folder in the name of a plugin in a file


@dataclass(frozen=True)
class Kind:
    """A kind of difference.

    may_change  in words
    tolerance   for each loss of each step and each metric in nats, relative to it, or absolute below 1 nat;
                0: bit-equal all the same; None: something else is trained, so nothing is tolerated
    """

    may_change: str
    tolerance: float | None


ROUNDING = "the order of sums, so the last digits, and more with each step"
OTHER = "what is trained: this is another run"
KINDS = {
    "recipe": Kind(OTHER, None),
    "model": Kind(OTHER, None),
    "data": Kind(OTHER, None),
    "cache": Kind("the teacher's signal, so what is trained: this is another run", None),
    "plugin": Kind("what the plugin does, so what is trained: this may be another run", None),
    "processor": Kind("the instructions, and " + ROUNDING, 1e-3),
    "threads": Kind(ROUNDING, 1e-3),
    "ranks": Kind(ROUNDING + "; noise that is drawn for each micro-batch, such as dropout", 1e-3),
    "torch": Kind("how each operation is computed, so the last digits, and more with each step", 1e-3),
    "library": Kind("how models are computed, adapters begin and optimizers step", 1e-2),
    "dtype": Kind("the precision of all that is computed", 5e-2),
    "commit": Kind("nothing: what was read is the same", 0.0),
}
COARSEST = 5e-2  # tolerance of any difference where a model computes with the 8 bits of bfloat16


@dataclass(frozen=True)
class Difference:
    """A value that differs. `what`: its key; `locked`, `here`: the values, None where there is none."""

    kind: str
    what: str
    locked: Any
    here: Any

    @property
    def may_change(self) -> str:
        """What the difference may change, in words."""
        return KINDS[self.kind].may_change

    @property
    def changes_training(self) -> bool:
        """Whether something else is trained, so that no tolerance applies."""
        return KINDS[self.kind].tolerance is None


def tolerance(differences: list[Difference], lock: Mapping[str, Any]) -> float | None:
    """Return the tolerance of differences together; None where something else is trained."""
    each = [KINDS[difference.kind].tolerance for difference in differences]
    largest = max((value for value in each if value is not None), default=0.0)
    rounds = largest and "bfloat16" in lock["computation"]["dtypes"].values()
    return None if None in each else max(largest, COARSEST) if rounds else largest


def find_differences(lock: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """Return what differs between two locks in what a result depends on, the most important first."""
    known = {**lock, "recipe": with_newer_keys(lock["recipe"], here["recipe"])}
    before, now = _sorted_by_kind(known), _sorted_by_kind(here)
    if "cache" not in now:  # it is not known before the replay
        before["cache"] = {}
    return [
        Difference(kind, what, before[kind].get(what), now[kind].get(what))
        for kind in KINDS
        for what in sorted(before[kind].keys() | now[kind].keys())
        if before[kind].get(what) != now[kind].get(what)
    ]


def _sorted_by_kind(lock: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a result depends on, by kind of difference and key."""
    computation, versions = lock["computation"], {f"versions.{name}": value for name, value in lock["versions"].items()}
    torch = {key: versions.pop(key, None) for key in ("versions.torch",)}
    models = dict(_flat({role: _content(model) for role, model in lock["models"].items()}, "models"))
    return {
        "recipe": dict(_flat(comparable(lock["recipe"]))) | {"seed": lock["seed"]},
        "model": {key: value for key, value in models.items() if ".cache." not in key},
        "data": dict(_flat({key: lock["data"].get(key) for key in ("fingerprint", "chat_template_date")}, "data")),
        "cache": {key: value for key, value in models.items() if ".cache." in key},
        "plugin": {
            f"plugins.{without_folder_of_file(name)}": _code(entry)
            for name, entry in lock["plugins"].items()
            if name.partition(".")[0] not in NO_PART
        },
        "processor": {"hardware.cpu": lock["hardware"]["cpu"], "hardware.gpus": lock["hardware"]["gpus"]}
        | {"computation.device": computation["device"], "platform": lock["platform"]},
        "threads": {"computation.threads": computation["threads"]},
        "ranks": {"computation.ranks": computation["ranks"]},
        "torch": torch,
        "library": versions,
        "dtype": dict(_flat(computation["dtypes"], "computation.dtypes")),
        "commit": dict(_flat(lock.get("commits", {}), "commits")),
    }


def without_folder_of_file(key: str) -> str:
    """Return a key with the name of a plugin without the folder of its file: the same wherever this is."""
    return _FILE.sub("", key)


def comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without the keys whose content is compared, and without local folders."""
    kept = {key: _without_places(value) for key, value in recipe.items() if key not in NO_PART}
    data = kept.get("data", {})
    named = {name: _without_places(source) for name, source in (data.get("sources") or {}).items()}
    kept["data"] = data | ({"sources": named} if named else {})
    shown: dict[str, Any] = publishable(kept)
    return shown


def _without_places(value: Any) -> Any:
    return {key: inner for key, inner in value.items() if key not in BY_CONTENT} if isinstance(value, dict) else value


def _content(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a model: its hash, or its id and commit on the hub; a local path does not."""
    kept = {key: value for key, value in model.items() if key not in ("source", "adapter") and value is not None}
    kept |= {"source": model["source"]} if model.get("revision") else {}
    adapter = model.get("adapter")
    return kept | ({"adapter": adapter["sha256"]} if adapter else {})


def _code(entry: Mapping[str, Any]) -> str:
    """Return what identifies the code of a plugin: its class and the hash of its file, else package and version.

    neoplug's own version is a difference by itself.
    """
    name, package = str(entry.get("target")).rpartition("/")[2], entry.get("package")
    if "sha256" in entry:
        return f"{name}, sha256 {entry['sha256']}"
    return name if package == SHIPPED else f"{name} of {package} {entry.get('version')}"


def _flat(values: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    return ((".".join([*above, *map(str, path)]), value) for path, value in leaves(values))

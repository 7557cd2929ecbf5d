"""The configurations that a dataset folder's README.md declares, as dataset cards of the Hugging Face hub do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Card:
    """What a README.md declares.

    configurations  name -> split -> patterns of files below the folder
    default         the configuration that is read where the recipe names none; None where it has to
    """

    configurations: Mapping[str, Mapping[str, list[str]]]
    default: str | None


def read_card(folder: Path) -> Card | None:
    """Return the configurations that README.md declares; None where it declares no files."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig")
        header = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return None
    declared = header.get("configs") if isinstance(header, dict) else None
    configs = [config for config in declared or [] if isinstance(config, dict) and config.get("data_files")]
    if not configs:
        return None
    found = {str(config.get("config_name", "default")): dict(_patterns(config["data_files"])) for config in configs}
    marked = [str(config.get("config_name", "default")) for config in configs if config.get("default") is True]
    names = [*marked, *(name for name in found if name == "default" or len(found) == 1)]
    return Card(found, names[0] if names else None)


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield split and patterns of `data_files`: a pattern, a list of them, or an entry for each split."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        yield "train", entries
    for entry in entries:
        if isinstance(entry, dict) and {"split", "path"} <= entry.keys():
            paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
            yield str(entry["split"]), [str(path) for path in paths]

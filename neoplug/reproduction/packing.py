"""Packing of a run: what a replay needs and cannot get elsewhere; a file that holds a secret is refused."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import UsageError
from neoplug.files.contents import files_below, record
from neoplug.models.reference import CONFIG, WEIGHTS
from neoplug.recipe.paths import is_glob
from neoplug.recipe.schema import is_source, plugin_map_at
from neoplug.registry.consent import MODULE
from neoplug.registry.modules import LITERAL
from neoplug.reproduction.archive import write_archive
from neoplug.reproduction.differences import without_folder_of_file
from neoplug.runs.directory import as_json, as_yaml
from neoplug.runs.public_files import Content, measured_files, open_recorded, trained_files
from neoplug.runs.publishable import masked, publishable

FILES = "files"  # the folder of files that the recipe names
HEAD = 8192  # bytes at the start of a file; one with a zero byte among them is no text
MODELS: tuple[Key, ...] = (("student", "model"), ("teacher", "model"))
IMPORTABLE = "a module: to replay, it has to be importable and trusted, --trust python:{}"
GIVEN = "a class that a Python call gave: to replay, name it as ./FILE.py:{} in the recipe, and run again"
LEFT_OUT: tuple[Key, ...] = (("output_dir",), ("report_to",), ("trackers",))


@dataclass
class _Packer:
    """Copies what a recipe names into a folder, and names it there.

    names     output: what is packed, as the recipe names it -> its name in the archive
    left_out  output: what is not packed: what the recipe names keeps its name; links and hidden files in folders
    """

    folder: Path
    with_data: bool
    with_models: bool
    names: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)

    def relocated(self, value: Any, path: Key = ()) -> Any:
        """Return a recipe, or a part of it, with names of packed files in place of local paths."""
        if isinstance(value, dict):
            return {
                self._name(key, (*path, key)) if isinstance(key, str) and ".py:" in key else key: self.relocated(
                    inner, (*path, key)
                )
                for key, inner in value.items()
                if (*path, key) not in LEFT_OUT
            }
        if isinstance(value, list):
            return [self.relocated(inner, path) for inner in value]
        return self._name(value, path) if isinstance(value, str) else value

    def _name(self, text: str, path: Key) -> str:
        """Return the name of what a text of the recipe names: in the archive where it is packed, else the text."""
        if not text.startswith("/"):
            return text
        file, plugin = text, ""
        if ".py:" in text:
            file, _, plugin = text.rpartition(":")
        found = glob.glob(file, recursive=True) if is_glob(file) else [file] * Path(file).exists()  # noqa: PTH207
        if not found or not self._may_be_packed(path):
            self.left_out |= {text: None} if found else {}
            return text
        if file not in self.names:
            self.names[file] = self._copied(file, [Path(name) for name in found], path)
        return f"{self.names[file]}:{plugin}" if plugin else self.names[file]

    def _may_be_packed(self, path: Key) -> bool:
        if path in MODELS:
            return self.with_models
        place = plugin_map_at(path)
        is_plugin = place is not None and len(path) == len(place) + 1  # its code, whose options may name data
        is_data = place is not None and is_source(place) and not is_plugin
        return self.with_data or not is_data

    def _copied(self, pattern: str, found: list[Path], path: Key) -> str:
        """Copy files, or the files below folders, and return the name of all."""
        home = Path(pattern).parent
        while is_glob(str(home)):
            home = home.parent
        number = len(self.names)
        for entry in found:
            files = [entry / name for name in (CONFIG, *WEIGHTS)] if path[-1] == "adapter_path" else files_below(entry)
            for file in files:
                inside = file.relative_to(home)
                if file.is_symlink() or any(part.startswith(".") for part in inside.parts):
                    self.left_out[str(file)] = None
                elif file.is_file():
                    self.add(f"{FILES}/{number}/{inside.as_posix()}", file)
        return f"./{FILES}/{number}/{Path(pattern).relative_to(home).as_posix()}"

    def add(self, name: str, content: Content) -> None:
        """Write a file. Raises UsageError where it holds a secret."""
        text = _text(content)
        if masked(text) != text:
            line = next((n for n, one in enumerate(text.splitlines(), 1) if masked(one) != one), 1)
            raise UsageError(
                f"{name} is not packed: line {line} holds a password or an access token\n"
                "why: an archive is for others\nfix: remove it from the file, and run again"
            )
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)


def _modules(recipe: Mapping[str, Any], lock: Mapping[str, Any]) -> dict[str, str]:
    """Return the code of a run that no file of its recipe and no package of plugins has; with what a replay needs."""
    data = recipe["data"]
    several = [part["source"] for part in (data.get("sources") or {}).values()]
    sources = [data.get("source"), data.get("eval_source"), *several]
    named = {text: text.removeprefix(MODULE) for text in sources if str(text).startswith(MODULE)}
    needs = {text: IMPORTABLE.format(module) for text, module in named.items() if module not in LITERAL}
    for key, entry in lock["plugins"].items():
        name, target = key.partition(".")[2], entry["target"]
        if not entry["version"] and ".py:" not in target:
            is_named = ":" in name  # else the name of a class
            needs[name] = IMPORTABLE.format(target.partition(":")[0]) if is_named else GIVEN.format(name)
    return needs


def _text(content: Content) -> str:
    """Return the text of a file; an empty one where it is binary, as weights are: these are not held in memory."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            if b"\0" in file.read(HEAD):
                return ""
        content = content.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""


@dataclass(frozen=True)
class Packed:
    """What an archive holds of the files that a recipe names.

    files     local path -> its name in the archive
    left_out  local paths that the archive names and does not hold
    modules   modules of Python, and classes that a Python call gave, which it does not hold -> what a replay needs
    """

    files: dict[str, str]
    left_out: list[str]
    modules: dict[str, str]


def pack(path: Path, output: Path, *, with_data: bool = False, with_models: bool = False) -> Packed:
    """Write the archive of a finished run.

    with_data    pack the rows of local files too: their licence has to allow it
    with_models  pack local models too

    Raises:
        UsageError: the run is not finished, `output` exists, or a file holds a secret.
        DamageError: a file of the run is damaged.
    """
    run, result = open_recorded(path)
    if output.exists():
        raise UsageError(f"{output} exists already\nwhy: nothing is overwritten\nfix: name another file")
    lock = run.lock
    lock["plugins"] = {without_folder_of_file(name): entry for name, entry in lock["plugins"].items()}
    with TemporaryDirectory() as temporary:
        packer = _Packer(Path(temporary), with_data, with_models)
        packer.add("recipe.yaml", as_yaml(packer.relocated(run.resolved)).encode())
        packer.add("lock.json", as_json(publishable(lock)).encode())
        adapter = trained_files(run, "adapter/") if run.adapter.is_dir() else {}
        for name, content in (measured_files(run, result) | adapter).items():
            packer.add(name, content)
        record(packer.folder, ".")
        files = files_below(packer.folder)
        write_archive(output, {file.relative_to(packer.folder).as_posix(): file for file in files})
    return Packed(packer.names, list(packer.left_out), _modules(run.resolved, run.lock))

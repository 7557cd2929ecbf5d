"""Consent to code: what of the code that a recipe names may run. SECURITY.md states the rule.

It may run where the user typed its name, where it lies in the folder of the user's own recipe, or where its content is
in the list of what the user trusts: `--trust` adds to this list, and so does the start of a run.
"""

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from neoplug.errors import DiskError, Problem, RecipeError, UsageError
from neoplug.files import cache_root, config_root, lock, sha256_of, write_atomically
from neoplug.registry.discovery import Entry, installed
from neoplug.registry.modules import module_files

logger = logging.getLogger(__name__)
MODULE = "python:"  # how a recipe and `--trust` name a module
PYTHON = (".py",)
SCRIPTS = (".py", ".yaml", ".yml")  # of a folder of task files: these name functions, and hold templates that run
MOST_FILES = 10_000  # in a folder of code
RUN_FILES = ("recipe.yaml", "lock.json")  # both are in the folder of a run
SHORT = 12  # digits of a hash in messages
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STREAM = re.compile(r"/(dev/(stdin|fd/)|proc/)")
_CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE")


@dataclass(frozen=True)
class Code:
    """Code that a recipe names: files, or a model of the hub.

    name      as `--trust` takes it: a file, a folder, `python:MODULE` or a hub id
    files     all its files; None for a model of the hub
    revision  the commit of a model of the hub; empty while it is unknown
    """

    name: str
    files: tuple[Path, ...] | None = None
    revision: str = ""

    @classmethod
    def of_file(cls, file: Path) -> "Code":
        """Return the code in a file."""
        return cls(str(file), (file,))

    @classmethod
    def of_folder(cls, folder: Path, suffixes: Sequence[str]) -> "Code":
        """Return the code in a folder and below it. Raises RecipeError where there is too much to read."""
        entries = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
        found = list(islice(entries, MOST_FILES + 1))
        if len(found) > MOST_FILES:
            raise RecipeError([Problem(f"{folder} holds more than {MOST_FILES:,} files, too many to look for code")])
        return cls(str(folder), tuple(sorted(file for file in found if file.suffix in suffixes and file.is_file())))

    @classmethod
    def of_module(cls, name: str) -> "Code":
        """Return the code of a module and its packages. Raises RecipeError where there is no such module."""
        if not (files := module_files(name)):
            raise RecipeError([Problem(f"there is no module {name}, or it has no file")])
        return cls(MODULE + name, files)

    @classmethod
    def of_plugin(cls, entry: Entry) -> "Code | None":
        """Return the code of a plugin; None where its package registers plugins, so that the user installed it as one.

        Raises RecipeError where there is no such module.
        """
        if entry.file:
            return cls.of_file(entry.file)
        packages = {known.target.partition(":")[0].partition(".")[0] for known in installed()}
        module = entry.target.partition(":")[0]
        return None if module.partition(".")[0] in packages else cls.of_module(module)

    @classmethod
    def of_model(cls, model: str) -> "Code | None":
        """Return the Python files of a model that a recipe names; None where it has none."""
        path = os.path.expanduser(model)  # noqa: PTH111  which takes names of any length, as what follows
        if os.path.isdir(path):  # noqa: PTH112
            code = cls.of_folder(Path(path), PYTHON)
            return code if code.files else None
        return None if os.path.isfile(path) or model.startswith("pypi:") else cls(model)  # noqa: PTH113

    @classmethod
    def named(cls, text: str) -> "Code":
        """Return the code that `--trust` names. Raises UsageError where there is none."""
        path = os.path.expanduser(text)  # noqa: PTH111
        is_folder = os.path.isdir(path)  # noqa: PTH112
        if text.startswith(MODULE):
            return cls.of_module(text.removeprefix(MODULE))
        if os.path.isfile(path):  # noqa: PTH113
            return cls.of_file(Path(path))
        if is_folder and (code := cls.of_folder(Path(path), SCRIPTS)).files:
            return code
        if not is_folder and _HUB_ID.fullmatch(text) and not text.endswith(PYTHON):
            return cls(text)
        what = "holds no code" if is_folder else "is no file or folder, and no model of the hub"
        fix = "name a file, a folder with Python or task files, the id of a model of the hub, or python:MODULE"
        raise UsageError(f"--trust {text}: it {what}\nfix: {fix}")

    @cached_property
    def keys(self) -> dict[str, str]:
        """What identifies the content, and the file or model that has it: its SHA-256, or ID@COMMIT."""
        if self.files is None:
            return {f"{self.name}@{self.revision}": self.name}
        return {sha256_of(file): str(file) for file in self.files}


@dataclass(frozen=True)
class Naming:
    """How a recipe names code.

    text      the name as it is written
    folder    the folder of the file in which it is written
    is_typed  the user typed it, on the command line or in a call of the Python API
    """

    text: str
    folder: Path
    is_typed: bool = False


class Consent:
    """What the user lets run in one command.

    recipe  the recipe that the user named as a local file; None where there is none
    trust   what the user trusts, as `--trust` takes it; it is remembered at once

    Raises UsageError or RecipeError where `trust` names no code.
    """

    def __init__(self, recipe: Path | None = None, trust: Sequence[str | Path] = ()) -> None:
        is_file = recipe is not None and not _STREAM.match(str(recipe.absolute()))
        self.folder = recipe.resolve().parent if recipe and is_file else None
        codes = [Code.named(str(text)) for text in trust]
        self._hub_ids = {code.name for code in codes if code.files is None}
        self._allowed = {key: name for code in codes for key, name in code.keys.items()}
        _remember(self._allowed)

    @cached_property
    def _trusted(self) -> Mapping[str, str]:
        entries, fault = _read_list()
        if fault:
            logger.warning("%s is ignored: %s; what it lists has to be trusted again", trust_list(), fault)
        return entries

    def problem(self, code: Code, naming: Naming | None = None) -> Problem | None:
        """Return why code may not run; None where it may.

        naming  how the user's recipe names it; None: only what is trusted already may run
        """
        try:
            unknown = {key: name for key, name in code.keys.items() if not self._knows(code, key)}
        except OSError as error:
            return Problem(f"{code.name} cannot be read: {error.strerror}")
        if unknown and (why := self._objection(code, naming)):
            key, name = next(iter(unknown.items()))
            content = f"sha256 {key[:SHORT]}" if code.files is not None else f"commit {code.revision or 'unknown'}"
            what = f"`{naming.text if naming else code.name}` names code that you have not trusted: {name}, {content}"
            return Problem(what, why, f"read it, then add: --trust {shlex.quote(code.name)}")
        self._allowed |= code.keys
        if code.name in self._hub_ids:
            _remember(code.keys)
        return None

    def require(self, code: Code | None, naming: Naming | None = None) -> None:
        """Raise RecipeError where code may not run."""
        if code and (problem := self.problem(code, naming)):
            raise RecipeError([problem])

    def allow(self, code: Code) -> None:
        """Allow code that came with other code, which was allowed."""
        self._allowed |= code.keys

    def remember(self) -> None:
        """Add all that was allowed to the list of what is trusted, so that it may run wherever it is named later."""
        _remember(self._allowed)

    def _knows(self, code: Code, key: str) -> bool:
        if key in self._allowed or key in self._trusted:
            return True
        any_commit = f"{code.name}@"
        is_listed = not code.revision and any(known.startswith(any_commit) for known in self._trusted)
        return code.files is None and (any_commit in self._allowed or is_listed)

    def _objection(self, code: Code, naming: Naming | None) -> str:
        """Return why code that is not trusted may not run; an empty text where it may."""
        if naming is None:
            return "what is written in the folder of a run or a model gives no consent"
        if naming.text.startswith(MODULE):
            return "the name of a module does not say which file it means"
        is_module = code.name.startswith(MODULE)
        if naming.is_typed and not is_module:
            return ""
        if code.files is None:
            return "its files are downloaded"
        if self.folder is None:
            return "the recipe that names it is no file in a folder of yours"
        is_elsewhere = Path(naming.text).is_absolute() or naming.text.startswith("~") or ".." in Path(naming.text).parts
        if is_elsewhere and not is_module:
            return "only a relative path without `..` names a file in the recipe's own folder"
        if not naming.folder.is_relative_to(self.folder):
            return f"it is named in {naming.folder}, outside of the recipe's own folder"
        return next(filter(None, (_outside(file.resolve(), self.folder) for file in code.files)), "")


def _outside(file: Path, folder: Path) -> str:
    """Return why a file is not the user's own in `folder`; an empty text where it is."""
    if not file.is_relative_to(folder):
        return f"{file} lies outside of {folder}, the recipe's own folder"
    if hasattr(os, "getuid") and file.stat().st_uid not in (os.getuid(), 0):
        return f"{file} belongs to another user"
    if any(file.is_relative_to(cache) for cache in _caches()):
        return f"{file} lies in a folder for downloaded files"
    runs = (parent for parent in file.parents if all((parent / name).is_file() for name in RUN_FILES))
    return next((f"{file} lies in the folder of the run {run}" for run in runs), "")


def _caches() -> Iterator[Path]:
    """Yield the folders for downloaded files: those of the hub, its data sets and modules, and of neoplug."""
    yield cache_root().resolve()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    for folder in (os.environ.get("HF_HOME") or home, *filter(None, map(os.environ.get, _CACHES))):
        yield Path(folder).expanduser().resolve()


def trust_list() -> Path:
    """Return the file that lists what the user trusts; it may be edited."""
    return config_root() / "trusted.json"


def _read_list() -> tuple[dict[str, str], str]:
    """Return the entries of the list, and why it cannot be used; an empty text where it can, or there is none."""
    file = trust_list()
    try:
        if hasattr(os, "getuid") and (file.stat().st_uid != os.getuid() or file.stat().st_mode & 0o022):
            return {}, "others may have written it"
        entries = json.loads(file.read_text(encoding="utf-8"))["trusted"]
        if not all(isinstance(name, str) for name in entries.values()):
            return {}, "it is damaged"
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, "it is damaged"
    return entries, ""


def _remember(keys: Mapping[str, str]) -> None:
    """Add entries to the list. Where it cannot be written, they hold for this command, and a warning is logged."""
    keys = {key: name for key, name in keys.items() if not key.endswith("@")}
    if not keys.keys() - _read_list()[0].keys():
        return
    file = trust_list()
    try:
        with lock(file):
            record = {"format": 1, "trusted": _read_list()[0] | keys}
            write_atomically(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n", mode=0o600)
    except (OSError, DiskError) as error:
        logger.warning("%s cannot be written (%s): what you trust holds for this command only", file, error)

"""Selection of the data files of a local folder or a glob: by configuration, by split, and which are not read.

A configuration is one that the folder's README.md declares (as on the Hugging Face hub), or the folders around the
split in a file's path: `en/train.jsonl` belongs to `en`. Files of several configurations, or of several splits of one
kind (`train_sft` and `train_gen`), are never read as one.
"""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from neoplug.data.ingest.dataset_card import Card, read_card
from neoplug.data.ingest.readers import KNOWN_SUFFIXES, format_of
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean

SPLITS = {  # word in a file's name, or in a recipe -> split
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")
# What numbers the files of one split: `-00000-of-00002`, with the hash that older datasets have, `-0`, `.1`.
SHARD = re.compile(r"(^|[-_. ]+)\d+(-of-\d+)?(-[0-9a-f]{16})?$")
PROSE = (".txt", ".md")  # read only where there is no other data file
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # of the library `datasets`
ROOT = "."  # the configuration of files that are in no folder of a configuration
SHOWN = 10  # files named in one note
T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """The data files of a source, and sentences about those that are not read."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataFile:
    """A data file; `relative` is its path below the folder."""

    path: Path
    relative: Path

    @cached_property
    def parts(self) -> list[str]:
        """Return the folders of the relative path and the name without suffixes, in lower case, without numbers."""
        suffixes = format_of(self.path)
        names = [*self.relative.parent.parts, self.relative.name[: -len(suffixes)] if suffixes else self.relative.name]
        return [_without_number(name.lower()) for name in names]

    @cached_property
    def _at(self) -> int:
        """Return the index in `parts` of the last one with a split; -1 where none has one."""
        return max((n for n, part in enumerate(self.parts) if SPLIT_WORD.search(part)), default=-1)

    @property
    def word(self) -> str:
        """Return the whole name of the split, such as `train_sft`; an empty string where there is none."""
        return self.parts[self._at] if self._at >= 0 else ""

    @property
    def split(self) -> str:
        """Return the split that the word means, by the last one of several words in SPLITS; empty without a word."""
        return SPLITS[SPLIT_WORD.findall(self.word)[-1]] if self.word else ""

    @property
    def configuration(self) -> str:
        """Return the folders above the split, joined; ROOT where there are none."""
        return "/".join(filter(None, self.parts[: max(self._at, 0)])) or ROOT

    @property
    def subfolder(self) -> str:
        """Return the folders below the split, or all folders where there is no split, joined; ROOT for none."""
        return "/".join(filter(None, self.parts[self._at + 1 : -1])) or ROOT


def files_of_split(folder: Path, split: str, key: Key = ("data", "source"), name: str | None = None) -> Selection:
    """Return the data files below `folder` that belong to a split, sorted by name.

    Where the path of any file contains a split (train.jsonl, test/part-0.parquet), files without one are not read; else
    all files are `train`. Text files are used only where there is no other data file, so that a README is not read.

    name    the configuration; None where there is one only
    raises  RecipeError where there is no such configuration or split, or the choice between several is open
    """
    files, left_out = _data_files(folder, (file for file in sorted(folder.rglob("*")) if file.is_file()))
    if not files:
        fix = f"a data file ends in one of {KNOWN_SUFFIXES}"
        raise RecipeError([Problem(f"the folder {folder} has no data file", fix=fix, path=key)])
    if card := read_card(folder):
        return _declared_files(folder, card, split, key, name)
    chosen, of_other_splits = _chosen(files, split, str(folder), key, name)
    unread = [file.relative for file in files if file not in chosen and file not in of_other_splits]
    return Selection([file.path for file in chosen], [*_notes(folder, [*left_out, *unread]), *_subfolders(chosen)])


def files_of_glob(pattern: str, split: str, key: Key) -> Selection:
    """Return the files that match a pattern such as `data/*.jsonl`, sorted by name; `**` matches folders of any depth.

    Where the names of the files contain several splits, those of `split` are read; else all are.
    """
    matches = [Path(found) for found in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]  # noqa: PTH207 -- the pattern is absolute
    folder = _common_folder(pattern)
    files, left_out = _data_files(folder, (file for file in matches if file.is_file()))
    if not files:
        what = f"no data file matches {pattern}"
        raise RecipeError([Problem(what, fix=f"a data file ends in one of {KNOWN_SUFFIXES}", path=key)])
    chosen = files
    if len({file.split for file in files}) > 1 or split != "train":
        wanted = SPLITS.get(split, split)
        chosen = [file for file in files if wanted == file.split or split.lower() == file.word]
        if not chosen:
            raise RecipeError([no_split(pattern, split, [file.word for file in files], key)])
    unread = [file.relative for file in files if file not in chosen]
    return Selection([file.path for file in chosen], _notes(folder, [*left_out, *unread]))


def _common_folder(pattern: str) -> Path:
    """Return the folder above the first part of a pattern with a wildcard."""
    path = Path(pattern).expanduser()
    plain = [part for part in path.parents if not glob.has_magic(str(part).replace("[[]", ""))]
    return Path(str(plain[0]).replace("[[]", "["))


def _data_files(folder: Path, found: Iterable[Path]) -> tuple[list[DataFile], list[Path]]:
    """Return the data files among those found, and the relative paths of the other ones; hidden files are neither."""
    visible = [DataFile(file, file.relative_to(folder)) for file in found]
    visible = [file for file in visible if not any(part.startswith(".") for part in file.relative.parts)]
    known = [file for file in visible if format_of(file.path) and file.path.name not in METADATA]
    files = [file for file in known if not format_of(file.path).startswith(PROSE)] or known
    return files, [file.relative for file in visible if file not in files]


def _chosen(
    files: Sequence[DataFile], split: str, source: str, key: Key, name: str | None
) -> tuple[list[DataFile], list[DataFile]]:
    """Return the files of a configuration and split, and those that belong to other splits."""
    if name is not None:
        files = _of_configuration(files, name, source, key)
    if not any(file.word for file in files):
        if SPLITS.get(split, split) != "train":
            raise RecipeError([no_split(source, split, ["train"], key)])
        return list(files), []
    exact = [file for file in files if file.word == split.lower()]
    chosen = exact or [file for file in files if file.word and file.split == SPLITS.get(split, split)]
    if not chosen:
        raise RecipeError([no_split(source, split, [file.word for file in files], key)])
    words, configurations = ({getattr(file, of): None for file in chosen} for of in ("word", "configuration"))
    if len(configurations) > 1:
        raise RecipeError([_several_configurations(source, list(configurations), key)])
    if len(words) > 1:
        what = f"{source} has {len(words)} splits that `{split}` may mean: {', '.join(words)}"
        why = "files of several splits are not mixed"
        fix = f"name one, as in {key_of_split(key)[-1]}: {next(iter(words))}; or the files, as in {source}/*.jsonl"
        raise RecipeError([Problem(what, why, fix, key_of_split(key))])
    others = [file for file in files if file.word and file.split != chosen[0].split]
    return chosen, others


def _of_configuration(files: Sequence[DataFile], name: str, source: str, key: Key) -> list[DataFile]:
    """Return the files of a configuration, which may be named by the last of its folders."""
    for suits in (_is_named, _ends_in):
        for of in ("configuration", "subfolder"):
            if chosen := [file for file in files if suits(getattr(file, of), name.lower())]:
                return chosen
    known = dict.fromkeys(of for file in files for of in (file.configuration, file.subfolder) if of != ROOT)
    raise RecipeError([no_configuration(source, name, list(known), key)])


def _is_named(configuration: str, name: str) -> bool:
    return configuration == name.strip("/")


def _ends_in(configuration: str, name: str) -> bool:
    return configuration.rpartition("/")[2] == name


def _declared_files(folder: Path, card: Card, split: str, key: Key, name: str | None) -> Selection:
    """Return the files of a configuration and split that the folder's README.md declares."""
    known = card.configurations
    chosen = name or card.default
    if chosen is None:
        raise RecipeError([_several_configurations(str(folder), list(known), key)])
    if chosen not in known:
        raise RecipeError([no_configuration(str(folder), chosen, list(known), key)])
    patterns = of_split(known[chosen], split, str(folder), key)
    files = _matching(folder, patterns)
    if not files:
        what = f"no file of {folder} matches {', '.join(patterns)}, which its README.md declares for `{split}`"
        raise RecipeError([Problem(what, path=key_of_split(key))])
    declared = _matching(
        folder, [pattern for splits in known.values() for found in splits.values() for pattern in found]
    )
    rest, others = _data_files(folder, (file for file in sorted(folder.rglob("*")) if file.is_file()))
    unread = [*others, *(file.relative for file in rest if file.path not in declared)]
    return Selection(files, _notes(folder, unread))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _notes(folder: Path, unread: Sequence[Path]) -> list[str]:
    """Return a sentence that names the files that are not read; none where there are none."""
    if not unread:
        return []
    names = [file.as_posix() for file in sorted(unread)]
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [f"{len(names)} file{'s' * (len(names) > 1)} of {folder} not read: {shown}"]


def _subfolders(files: Sequence[DataFile]) -> list[str]:
    """Return a sentence that names the folders whose files are read together; none where there is one."""
    folders = list(dict.fromkeys(file.subfolder for file in files))
    if len(folders) < 2:
        return []
    shown = ", ".join(folders[:SHOWN]) + (f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else "")
    return [f"the files of {len(folders)} folders are read together ({shown}); `name` selects one"]


def _without_number(name: str) -> str:
    """Return a name without the numbers at its end, and without one before its first word."""
    while (shorter := SHARD.sub("", name)) != name:
        name = shorter
    return re.sub(r"^\d+[-_. ]+", "", name)


def of_split(by_split: Mapping[str, T], split: str, source: str, key: Key) -> T:
    """Return the value of `split`, or of the split that SPLITS has for this word; RecipeError where there is none."""
    wanted = split if split in by_split else SPLITS.get(split, split)
    if wanted not in by_split:
        raise RecipeError([no_split(source, split, list(by_split), key)])
    return by_split[wanted]


def key_of_split(key: Key) -> Key:
    """Return the recipe's key of the split, given that of the source."""
    return key if key[-1] == "eval_split" else (*key[:-1], "split")


def no_split(source: str, split: str, known: Sequence[str], key: Key) -> Problem:
    """Return the problem that a source has no such split; `known` are those that it has."""
    words = list(dict.fromkeys(word for word in known if word))
    what = f"{source} has no split `{split}`{did_you_mean(split, words)}"
    return Problem(what, fix=f"it has {', '.join(words)}" if words else "", path=key_of_split(key))


def no_configuration(source: str, name: str, known: Sequence[str], key: Key) -> Problem:
    """Return the problem that a source has no such configuration; `known` are those that it has."""
    fix = f"it has {', '.join(known)}" if known else "remove `name`: the source has one configuration"
    what = f"{source} has no configuration `{name}`{did_you_mean(name, known)}"
    return Problem(what, fix=fix, path=(*key[:-1], "name"))


def _several_configurations(source: str, known: Sequence[str], key: Key) -> Problem:
    what = f"{source} has {len(known)} configurations: {', '.join(known)}"
    why = "files of several configurations are not mixed"
    fix = f"name one, as in name: {next(name for name in known)}; or read several as data.sources"
    return Problem(what, why, fix, (*key[:-1], "name"))

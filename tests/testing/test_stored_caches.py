"""`check_stored_cache`: it passes a whole folder, and names damage and wrong answers."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from neoplug import hookimpl
from neoplug.files.contents import record
from neoplug.teachers.cache_files import HEADER, HELD_OUT, TRAIN, Header, ShardWriter
from neoplug.testing import STORED_CACHE, Broken, check_stored_cache, examine
from neoplug_teachers.states import States
from neoplug_teachers.stored import Stored


def write(folder, kind="states", documents=3):
    """Write a cache with some documents in each part."""
    folder.mkdir(parents=True)
    kept = {"name": kind, "options": {"dtype": "float32"}}
    header = Header({"vocabulary": None}, kept, draws=1, fitted={}, hidden_size=4, multiplier=1.0, cap=None)
    header.write(folder)
    record(folder, HEADER)
    for part in (TRAIN, HELD_OUT):
        writer = ShardWriter(folder / part, header.sha256)
        (folder / part).mkdir()
        for number in range(documents):
            writer.add(f"{number:064x}", [{"states": torch.full((2, 4), float(number))}], 2)
        writer.flush()
    return folder


@dataclass(eq=False)
class Fetches(Stored):
    """Copies the folder to another place at each call."""

    @hookimpl
    def cache_folder(self):
        places = sum(1 for _ in self.path.parent.glob("fetched-*"))
        return shutil.copytree(self.path, self.path.parent / f"fetched-{places}")


@dataclass(eq=False)
class Writes(Stored):
    """Leaves a file in the folder at each call."""

    @hookimpl
    def cache_folder(self):
        (self.path / f"{len(list(self.path.iterdir()))}.txt").touch()
        return self.path


@dataclass(eq=False)
class Nothing(Stored):
    @hookimpl
    def cache_folder(self):
        return None


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES = {
    HEADER: (flip, "is damaged: .*header.json"),
    "contents.json": (Path.unlink, "is damaged"),
    TRAIN: (flip, "train/.* does not match its hash"),
    HELD_OUT: (lambda file: file.write_bytes(file.read_bytes()[:-9]), "held_out/.* is no complete shard"),
}


def test_a_whole_folder_passes(tmp_path):
    plugin = Stored(write(tmp_path / "cache"))
    check_stored_cache(plugin)
    assert {finding.verdict for finding in examine(plugin, STORED_CACHE)} == {"holds"}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(tmp_path, name):
    folder, (damage, message) = write(tmp_path / "cache"), DAMAGES[name]
    target = folder / name
    damage(next(target.iterdir()) if target.is_dir() else target)
    with pytest.raises(Broken, match=message):
        check_stored_cache(Stored(folder))


UNREADABLE = [
    ({"documents": 0}, "has no document"),
    ({"kind": "gone"}, "no plugin is named `gone`"),
    ({"kind": "lora"}, "of the kind `lora`"),
]


@pytest.mark.parametrize(("options", "message"), UNREADABLE)
def test_a_folder_that_no_run_could_read_is_named(tmp_path, options, message):
    with pytest.raises(Broken, match=message):
        check_stored_cache(Stored(write(tmp_path / "cache", **options)))


def test_a_folder_without_a_cache_is_named(tmp_path):
    with pytest.raises(Broken, match="holds no teacher's cache"):
        check_stored_cache(Stored(tmp_path))


@pytest.mark.parametrize(
    ("plugin", "name", "message"),
    [
        (Fetches, "repeated", "asked again, it gives .*fetched-2, and not .*fetched-1"),
        (Writes, "untouched", r"it changes \d+\.txt"),
        (Nothing, "whole", "None, where the path of a folder is expected"),
    ],
)
def test_a_wrong_answer_is_named(tmp_path, plugin, name, message):
    findings = examine(plugin(write(tmp_path / "cache")), STORED_CACHE)
    (found,) = (finding for finding in findings if finding.name == name)
    assert found.verdict == "does not hold"
    assert re.search(message, found.why), found.why


def test_a_plugin_without_the_hook_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(TypeError, match="has no `cache_folder`"):
        check_stored_cache(States())

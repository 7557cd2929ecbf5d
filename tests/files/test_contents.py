"""A record of contents finds every damage of the files that it names."""

import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest

from neoplug.files import contents

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from damage import WAYS

FILES = {"a.json": b'{"a": 1}', "deep/b.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def folder(tmp_path):
    with contents.recorded_folder(tmp_path / "folder") as draft:
        for name, content in FILES.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)
    return tmp_path / "folder"


def test_the_record_holds_sizes_and_hashes_as_hashlib_computes_them(folder):
    stored = json.loads((folder / "contents.json").read_text())
    assert stored["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert contents.damage(folder) == ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a.json", "deep/b.bin", "contents.json"])
def test_every_damage_is_found_and_names_the_file(folder, name, way):
    WAYS[way](folder / name)
    assert contents.damage(folder).startswith(f"{name} ")


def test_every_flipped_bit_is_found(folder):
    for name in ("a.json", "contents.json"):
        whole = (folder / name).read_bytes()
        for at in range(len(whole)):
            broken = bytearray(whole)
            broken[at] ^= 1 << (at % 8)
            (folder / name).write_bytes(broken)
            try:
                same = json.loads(broken) == json.loads(whole)  # as in spaces between values of the record
            except ValueError:
                same = False
            assert bool(contents.damage(folder)) is not (same and name == "contents.json")
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (Path.unlink, "a.json is missing"),
        (lambda file: file.write_bytes(b""), "a.json is empty"),
        (lambda file: file.write_bytes(b"{}"), "a.json has 2 bytes of the 8 that were written"),
        (lambda file: file.write_bytes(b'{"a": 2}'), "a.json does not have the contents that were written (SHA-256)"),
    ],
)
def test_what_is_wrong_is_said(folder, change, what):
    change(folder / "a.json")
    assert contents.damage(folder) == contents.damage(folder, "a.json") == what
    assert contents.damage(folder, "deep") == contents.damage(folder, "deep/b.bin", "empty") == ""


def test_a_file_is_recorded_again_without_the_others(folder):
    (folder / "a.json").write_text("new")
    (folder / "empty").write_text("damaged")
    contents.record(folder, "a.json")
    assert contents.damage(folder, "a.json", "deep") == ""
    assert contents.damage(folder) == "empty has 7 bytes of the 0 that were written"


def test_a_damaged_folder_of_the_cache_is_removed_with_a_warning(folder, caplog):
    assert contents.intact(folder, "it is made again")
    (folder / "deep" / "b.bin").unlink()
    with caplog.at_level(logging.WARNING):
        assert not contents.intact(folder, "it is made again")
    assert caplog.messages == [f"{folder} is damaged: deep/b.bin is missing; it is made again"]
    assert not folder.exists()
    assert not contents.intact(folder, "it is made again")
    assert sys.getrecursionlimit() < 100_000  # "nested" goes beyond it

"""The files of a teacher's cache, against plain readers of the same bytes, and with every kind of damage."""

import hashlib
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from neoplug.errors import DamageError
from neoplug.teachers import cache_files
from neoplug.teachers.cache_files import Header, Shards, ShardWriter

HEADER = "a" * 64


def hash_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def value(document, draw):
    return torch.full((2,), 10 * document + draw)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with 100 documents of 2 draws in several shards."""
    monkeypatch.setattr(cache_files, "SHARD_TOKENS", 30)
    writer = ShardWriter(tmp_path / "train", HEADER)
    for number in range(100):
        writer.add(hash_of(number), [{"value": value(number, draw)} for draw in (0, 1)], 1)
    writer.flush()
    return tmp_path / "train"


def test_each_record_is_found_by_its_documents_content(folder):
    shards = Shards(folder, HEADER)
    assert len(shards) == 4
    assert shards.documents == 100
    for draw in (0, 1):
        records = shards.records([hash_of(number) for number in reversed(range(100))], draw)
        for number, record in zip(reversed(range(100)), records, strict=True):
            assert torch.equal(record["value"], value(number, draw))
    assert shards.find([hash_of(100), hash_of(5)])[0].tolist()[0] == -1
    assert shards.damaged == shards.validate() == []


def test_a_shard_is_a_safetensors_file_named_by_its_hash(folder):
    seen = []
    for file in folder.iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
        with safe_open(file, framework="np") as opened:
            documents, starts, records = (opened.get_tensor(name) for name in ("documents", "starts", "records"))
            assert opened.metadata() == {"header": HEADER}
        names = [bytes(row).hex() for row in documents]
        assert names == sorted(names)
        seen += names
        for name, (first, second, last) in zip(names, starts.tolist(), strict=True):
            number = next(number for number in range(100) if hash_of(number) == name)
            assert torch.equal(load(records[first:second].tobytes())["value"], value(number, 0))
            assert torch.equal(load(records[second:last].tobytes())["value"], value(number, 1))
    assert sorted(seen) == sorted(map(hash_of, range(100)))


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 4
    return bytes(changed)


DAMAGE = {
    "empty": lambda content: b"",
    "cut in the header": lambda content: content[:20],
    "cut in the data": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "text": lambda content: b"not a shard at all",
    "no length": lambda content: b"\xff" * 8 + content[8:],
    **{f"a bit flipped at {share:.0%}": lambda content, share=share: flipped(content, int(share * (len(content) - 1)))
       for share in (0, 0.05, 0.2, 0.4, 0.6, 0.8, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_a_shard_is_found_by_name(folder, name):
    file = sorted(folder.iterdir())[1]
    file.write_bytes(DAMAGE[name](file.read_bytes()))
    shards = Shards(folder, HEADER)
    found = [*shards.damaged, *shards.validate()]
    assert [error.file for error in found] == [file]


def test_a_shard_of_another_cache_is_not_read(folder):
    shards = Shards(folder, "b" * 64)
    assert len(shards) == 0
    assert {error.what for error in shards.damaged} == {"is a shard of another cache"}


HEADER_FIELDS = {
    "parts": {"model": "x"}, "kind": {"name": "states", "options": {}}, "draws": 1, "fitted": {"threshold": 1 / 3},
    "hidden_size": 8, "multiplier": 1.0, "cap": None,
}  # fmt: skip


def test_a_header_is_read_as_it_was_written(tmp_path):
    header = Header(**HEADER_FIELDS)
    header.write(tmp_path)
    assert Header.read(tmp_path) == header
    assert Header.read(tmp_path).sha256 == header.sha256


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values | {"format": 2},
        lambda values: values | {"more": 1},
        lambda values: {"draws": 1, "format": 1},
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path, change):
    Header(**HEADER_FIELDS).write(tmp_path)
    file = tmp_path / "header.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DamageError):
        Header.read(tmp_path)


def anonymous_memory():
    """Return the bytes of this process's memory that no file backs."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted by Linux")
def test_memory_does_not_grow_with_a_million_documents(tmp_path):
    """The index of a million documents has 48 MB; a lookup touches a few pages of it, and copies none."""
    size = 1_000_000
    digests = np.random.default_rng(0).integers(0, 256, (size, 32), np.uint8)
    digests[:, :8] = np.arange(size, dtype=">u8").view(np.uint8).reshape(-1, 8)  # ascending
    record = cache_files.bytes_of({"value": torch.zeros(2)})
    starts = np.stack([np.zeros(size, "<i8"), np.full(size, len(record), "<i8")], -1)
    tensors = {"documents": digests, "starts": starts, "records": np.frombuffer(record, np.uint8)}
    content = cache_files.bytes_of({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, {"header": HEADER})
    (tmp_path / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    wanted = [bytes(row).hex() for row in digests[:: size // 1000]]
    del content, tensors, starts, digests
    Shards(tmp_path, HEADER).records(wanted[:1], 0)  # what is allocated once

    before = anonymous_memory()
    tracemalloc.start()
    shards = Shards(tmp_path, HEADER)
    for document in wanted:
        assert len(shards.records([document], 0)) == 1
    assert shards.validate() == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert anonymous_memory() - before < 8_000_000

"""Atomic writes: a file or folder is complete or absent after any failure."""

import hashlib
import json
import multiprocessing
import os
import resource
import stat
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from neoplug import files
from neoplug.errors import DiskError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_utf8_and_readable_by_others(tmp_path):
    target = tmp_path / "new" / "file.txt"
    files.write_atomically(target, "é\n")
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert target.read_bytes() == b"\xc3\xa9\n"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.write_atomically(target, b"old")

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step-1"
    with files.folder_atomically(target) as draft:
        (draft / "weights").mkdir()
        (draft / "weights" / "a").write_text("1")
        assert not target.exists()
        assert draft.parent == tmp_path
    assert (target / "weights" / "a").read_text() == "1"
    assert names(tmp_path) == ["step-1"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask_whatever_a_library_writes(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "file", "")
        with files.folder_atomically(tmp_path / "step-1") as draft:
            save_file({"x": torch.zeros(1)}, draft / "x")  # with mode 0600
            (draft / "deep").mkdir()
            (draft / "deep" / "y").touch(0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"file": file, "step-1": folder, "x": file, "deep": folder, "y": file}


def hold_partials(folder, connection):
    with files.folder_atomically(folder / "model") as draft, files.discarded_folder(folder / "wheel"):
        (draft / "half").write_text("1")
        connection.send(None)
        connection.recv()


def test_partials_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append((context.Process(target=hold_partials, args=(tmp_path, theirs)), ours))
        processes[-1][0].start()
        ours.recv()
    partials = names(tmp_path)
    assert len(partials) == 4
    (killed, _), (living, connection) = processes
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == partials
    killed.kill()
    killed.join(20)
    with files.discarded_folder(tmp_path / "wheel"):  # removes that of the same name
        assert len([name for name in names(tmp_path) if name.startswith(".wheel.")]) == 2
        assert len([name for name in names(tmp_path) if name.startswith(".model.")]) == 2
    files.remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 2
    connection.send(None)
    living.join(20)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "half").read_text() == "1"


def write_and_fail(target):
    with files.folder_atomically(target) as draft:
        (draft / "a").write_text("1")
        raise KeyboardInterrupt


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "step-1")
    assert names(tmp_path) == []


@pytest.fixture
def full_disk():
    """Limit file sizes to 4 KiB, so that writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "x").write_bytes(bytes(100_000)),
        lambda folder: torch.save(torch.zeros(100_000), folder / "x"),  # raises RuntimeError
        lambda folder: save_file({"x": torch.zeros(100_000)}, folder / "x"),  # raises SafetensorError
    ],
    ids=["python", "torch", "safetensors"],
)
def test_a_full_disk_is_a_disk_error_for_every_library(tmp_path, full_disk, write):
    target = tmp_path / "folder"
    with pytest.raises(DiskError, match=f"^{target} cannot be written: File too large\nfix: "):  # noqa: SIM117
        with files.folder_atomically(target) as folder:
            write(folder)
    with pytest.raises(DiskError, match="cannot be written: File too large"):
        files.write_atomically(tmp_path / "file", bytes(100_000))
    assert names(tmp_path) == []


def test_a_path_below_a_file_is_a_disk_error(tmp_path):
    (tmp_path / "file").touch()
    for write in (write_and_fail, lambda target: files.write_atomically(target, "")):
        with pytest.raises(DiskError, match=r"file/x cannot be written: no file can be created in .*file "):
            write(tmp_path / "file" / "x")


def test_a_finished_folder_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match="run exists already"), files.folder_atomically(tmp_path / "run"):
        pass
    with pytest.raises(FileExistsError), files.folder_atomically(tmp_path / "late"):
        (tmp_path / "late").mkdir()
    assert names(tmp_path) == ["late", "run"]


def test_sha256_equals_hashlib(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 300_000)
    assert files.sha256_of(file) == hashlib.sha256(b"x" * 300_000).hexdigest()


KEYS = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_content_hash_ignores_order_and_survives_json(value):
    turned = dict(reversed(value.items()))
    assert files.content_hash(turned) == files.content_hash(value) == files.content_hash(json.loads(json.dumps(value)))


def test_content_hash_differs_for_different_values_and_refuses_nan():
    assert len({files.content_hash(value) for value in ({}, [], None, 0, "", {"a": 1}, {"a": "1"})}) == 7
    with pytest.raises(ValueError, match="Out of range"):
        files.content_hash({"a": float("nan")})


def test_the_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    assert files.cache_root() == tmp_path / "home"
    monkeypatch.delenv("NEOPLUG_HOME")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == tmp_path / "xdg" / "neoplug"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_root() == tmp_path / ".cache" / "neoplug"


def hold(path, log):
    with files.lock(path):
        with Path(log).open("a") as file:
            file.write("in\n")
        time.sleep(0.05)
        with Path(log).open("a") as file:
            file.write("out\n")


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hold, args=(tmp_path / "new" / "model", log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert log.read_text().split() == ["in", "out"] * 3

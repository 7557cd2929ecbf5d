"""`neoplug pack` and archives: the same bytes for the same run, no secrets, and no harm from hostile files.

The hostile archives are built with zipfile, or byte by byte.
"""

import io
import json
import os
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from neoplug.files.contents import record
from neoplug.reproduction import archive as archives


@pytest.fixture
def packed(original, command, tmp_path):
    """Return an archive with all that the run needs."""
    file = tmp_path / "run.neoplug"
    answer = command("pack", original.run, file, "--with-data", "--with-models")
    assert answer.code == 0, answer.err
    return file


def contents(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuilt(file, files, compression=zipfile.ZIP_STORED):
    """Write an archive of these files, with a right contents.json."""
    folder = file.with_suffix(".folder")
    for name, content in files.items():
        if name != "contents.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    record(folder, ".")
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
            archive.write(folder / name, name)
    return file


def test_an_archive_is_replayed_where_none_of_the_files_is(packed, original, command, tmp_path):
    shutil.rmtree(original.folder)
    answer = command("reproduce", packed, "--output", tmp_path / "again", "--json")
    assert (answer.code, answer.json["equal"], answer.json["differences"]) == (0, True, [])


def test_the_same_run_gives_the_same_bytes(packed, original, command, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    for file in original.run.rglob("*"):
        os.utime(file, (1, 1))
    assert command("pack", original.run, tmp_path / "two.neoplug", "--with-data", "--with-models").code == 0
    assert (tmp_path / "two.neoplug").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    refused = command("pack", original.run, packed)
    assert (refused.code, "exists already" in refused.err) == (2, True)


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """32 MiB in two files; zipfile, and the copies between files, take far less than one of them."""
    files = {name: tmp_path / name for name in ("a.bin", "b.bin")}
    for file in files.values():
        file.write_bytes(os.urandom(2**24))
    tracemalloc.start()
    archives.write_archive(tmp_path / "large.neoplug", files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert contents(tmp_path / "large.neoplug") == {name: file.read_bytes() for name, file in files.items()}
    assert not list(tmp_path.glob(".*"))


def test_an_archive_has_what_may_be_shared_and_nothing_else(original, command, tmp_path):
    (original.run / ".env").write_text("HF_TOKEN=hf_" + "a" * 30)
    file = tmp_path / "run.neoplug"
    answer = command("pack", original.run, file)
    assert f"packed: {original.folder / 'own.py'} as ./files/0/own.py" in answer.out
    for path in (original.folder / "chat.jsonl", original.folder / "student"):
        assert f"not packed: {path}" in answer.out
    found = contents(file)
    assert sorted(found) == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "contents.json", "files/0/own.py",
        "lock.json", "metrics.jsonl", "recipe.yaml", "result.json",
    ]  # fmt: skip
    without_recipe = b"".join(content for name, content in found.items() if name != "recipe.yaml")
    assert str(tmp_path).encode() not in without_recipe
    assert b"held-out text" not in found["result.json"]
    assert "sample" not in json.loads(found["result.json"])


def test_links_and_hidden_files_of_a_folder_are_not_packed(original, command, tmp_path):
    (original.folder / "student" / "link").symlink_to("/etc/hostname")
    (original.folder / "student" / ".token").write_text("secret")
    answer = command("pack", original.run, tmp_path / "run.neoplug", "--with-models")
    for name in ("link", ".token"):
        assert f"not packed: {original.folder / 'student' / name}\n" in answer.out
        assert not any(packed.endswith(name) for packed in contents(tmp_path / "run.neoplug"))


def test_modules_are_not_packed_but_named_with_what_a_replay_needs(original, command, tmp_path, monkeypatch):
    recipe, lock = original.recipe, original.lock
    for values in (recipe, lock["recipe"]):
        values["data"] |= {"source": "python:mine.texts", "eval_source": "python:pydoc_data.topics"}
    entry = {"package": "mine.losses", "version": "", "target": "mine.losses:Loss", "sha256": "0" * 64}
    lock["plugins"] |= {"loss.mine.losses:Loss": entry, "loss.Cell": entry | {"target": "__main__:Cell"}}
    original.write(recipe=recipe, lock=lock)
    package = original.folder / "mine"
    package.mkdir()
    (package / "texts.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ntexts = {{'a': 'b'}}\n")
    monkeypatch.syspath_prepend(original.folder)
    file = tmp_path / "run.neoplug"
    answer = command("pack", original.run, file)
    needs = "a module: to replay, it has to be importable and trusted, --trust python:mine"
    for line in (f"python:mine.texts, {needs}.texts\n", f"mine.losses:Loss, {needs}.losses\n", "Cell, a class that"):
        assert f"not packed: {line}" in answer.out
    assert "pydoc" not in answer.out
    assert not any("mine" in name for name in contents(file))
    refused = command("reproduce", file, "--dry-run")
    assert (refused.code, "--trust python:mine.texts" in refused.err) == (2, True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["plugin", "data", "environment"])
def test_a_file_with_a_secret_is_refused(original, command, tmp_path, monkeypatch, where):
    secret = "hf_" + "s3cret" * 5
    if where == "environment":
        secret = "quite-an-ordinary-word"
        monkeypatch.setenv("MY_API_KEY", secret)
    file = original.folder / ("chat.jsonl" if where == "data" else "own.py")
    file.write_text(file.read_text() + f"# {secret}\n")
    answer = command("pack", original.run, tmp_path / "run.neoplug", "--with-data")
    assert answer.code == 2
    assert f"line {len(file.read_text().splitlines())} holds a password or an access token" in answer.err
    assert secret not in answer.err
    assert not (tmp_path / "run.neoplug").exists()


def test_a_changed_byte_is_found(packed, command, tmp_path):
    """In the stored bytes, which zipfile's checksum finds; and with a right checksum, which the hash finds."""
    content = bytearray(packed.read_bytes())
    content[content.index(b"HELLO" if b"HELLO" in content else b"held_out")] ^= 1
    (tmp_path / "bit.neoplug").write_bytes(content)
    assert command("reproduce", tmp_path / "bit.neoplug", "--dry-run").code == 2
    files = contents(packed)
    files["metrics.jsonl"] = files["metrics.jsonl"].replace(b'"step": 2', b'"step": 3')
    with zipfile.ZipFile(tmp_path / "text.neoplug", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    answer = command("reproduce", tmp_path / "text.neoplug", "--dry-run")
    assert (answer.code, "metrics.jsonl does not have the contents" in answer.err) == (2, True)


def test_code_of_an_archive_needs_consent(packed, command, tmp_path, monkeypatch):
    files = contents(packed)
    (name,) = (name for name in files if name.endswith("own.py"))
    mark = tmp_path / "ran"
    files[name] += f"\nPath({str(mark)!r}).touch()\n".encode()
    hostile = rebuilt(tmp_path / "hostile.neoplug", files)
    answer = command("reproduce", hostile, "--dry-run")
    assert (answer.code, "--trust" in answer.err) == (2, True)
    assert not mark.exists()
    place = answer.err.rpartition("--trust ")[2].strip()
    trusted = command("reproduce", hostile, "--dry-run", "--json", "--trust", place)
    assert [one["kind"] for one in trusted.json["differences"]] == ["plugin"]
    assert mark.exists()


def named(name, **changes):
    """Return a function that writes an archive with one more file of this name."""

    def build(file, files):
        with zipfile.ZipFile(file, "w") as archive:
            for known, content in files.items():
                archive.writestr(known, content)
            entry = zipfile.ZipInfo(name)
            entry.external_attr = changes.get("mode", stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, changes.get("content", b"x"), changes.get("compression"))

    return build


def twice(file, files):
    with pytest.warns(UserWarning, match="Duplicate name"):
        named("recipe.yaml")(file, files)


def many(file, files):
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(10_001):
            archive.writestr(f"files/{number}", b"")


def bomb(file, files):
    rebuilt(file, files | {"files/zeros": bytes(2**24)}, zipfile.ZIP_DEFLATED)


def overlapping(file, files):
    """Entries that all have the bytes of one: a file of 1 MB that claims 100 MB."""
    content = bytes(2**20)
    facts = (0, 0, 0, 33, zlib.crc32(content), len(content), len(content))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *facts, 2, 0) + b"00" + content
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *facts, 2, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + f"{number:02}".encode() for number in range(100))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 100, 100, len(directory), len(local), 0)
    file.write_bytes(local + directory + end)


def long_list(file, files):
    """A list of files that is said to have 1 GB."""
    file.write_bytes(bytes(1000) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 2**30, 0, 0))


def large_locator(file, files):
    """A locator of a second list, which would be read in place of the first."""
    named("files/x")(file, files)
    content = file.read_bytes()
    file.write_bytes(content[:-22] + b"PK\6\7" + bytes(16) + content[-22:])


def tar(file, files):
    with tarfile.open(file, "w") as archive:
        entry = tarfile.TarInfo("../../outside")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))


def tar_link(file, files):
    with tarfile.open(file, "w:gz") as archive:
        entry = tarfile.TarInfo("recipe.yaml")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)


def without(name):
    return lambda file, files: rebuilt(file, {known: text for known, text in files.items() if known != name})


def cut(file, files):
    rebuilt(file, files)
    file.write_bytes(file.read_bytes()[:-100])


def with_comment(file, files):
    rebuilt(file, files)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"more"


HOSTILE = {
    "above": named("../outside"), "far above": named("a/../../../outside"), "absolute": named("/tmp/outside"),
    "backslash": named("..\\outside"), "drive": named("C:/outside"), "hidden": named(".bashrc"), "dot": named("a/./b"),
    "empty part": named("a//b"), "control": named("a\x1b[2J"), "long": named("a" * 300), "deep": named("a/" * 40 + "b"),
    "folder": named("folder/"), "file and folder": named("recipe.yaml/x"), "other case": named("RECIPE.yaml"),
    "link": named("files/link", mode=stat.S_IFLNK | 0o777, content=b"/etc/passwd"),
    "device": named("files/device", mode=stat.S_IFCHR | 0o666), "pipe": named("files/pipe", mode=stat.S_IFIFO | 0o666),
    "not recorded": named("files/more"), "compressed": named("files/more", compression=zipfile.ZIP_DEFLATED),
    "twice": twice, "many": many, "bomb": bomb, "overlapping": overlapping, "long list": long_list,
    "large locator": large_locator, "tar": tar, "tar with a link": tar_link, "no recipe": without("recipe.yaml"),
    "no lock": without("lock.json"), "no result": without("result.json"), "cut": cut, "comment": with_comment,
    "text": lambda file, files: file.write_text("no archive"), "nothing": lambda file, files: file.touch(),
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Make a cache of the test's own: others unpack archives into the common one, and write to it at the same time."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(packed, command, tmp_path, home, kind):
    file = tmp_path / "hostile.neoplug"
    HOSTILE[kind](file, contents(packed))
    before = sorted(tmp_path.rglob("*"))
    answer = command("reproduce", file, "--dry-run")
    assert (answer.code, f"{file} is no archive of a run" in answer.err) == (2, True), answer.err
    assert kind != "overlapping" or "its files share bytes" in answer.err
    assert "Traceback" not in answer.err
    assert "\x1b" not in answer.err
    assert not any(path.is_file() and path.suffix != ".lock" for path in home.rglob("*"))
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.is_relative_to(home)] == before


@pytest.mark.usefixtures("home")
def test_an_archive_beyond_the_limit_is_refused(packed, command, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    answer = command("reproduce", packed, "--dry-run")
    assert (answer.code, "1,000 are the most" in answer.err) == (2, True)

"""A damaged JSON file is one error that names the file, what is wrong with it, and what to do."""

import json
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors import DamageError
from neoplug.files import parse_map, read_json

BROKEN = {
    "": "is empty",
    " \n": "is empty",
    "null": "holds null in line 1, where a map was written",
    "[]": "holds a list in line 1",
    "7": "holds a number in line 1",
    '{"a": 1,\n"b": [1,': "ends in the middle of a value, in line 2",
    '{"a": "x': "ends in the middle of a value, in line 1",
    '{"a": 1}\n}': "is not JSON: Extra data in line 2, column 1",
    '{"a": NaN}': "NaN is no finite number",
    '{"a": 1e999}': "1e999 is no finite number",
    '{"a": ' + "9" * 5000 + "}": "has a number that cannot be read",
    '{"a": ' + "[" * 100_000: "is nested too deeply",
}


@pytest.mark.parametrize(("text", "what"), BROKEN.items(), ids=range(len(BROKEN)))
def test_what_is_wrong_is_said_with_file_and_remedy(tmp_path, text, what):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DamageError, match=what) as caught:
        read_json(file, "restore it")
    assert str(caught.value).startswith(f"{file} ")
    assert str(caught.value).endswith("\nfix: restore it")
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DamageError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json", "")
    with pytest.raises(DamageError, match="is no file"):
        read_json(tmp_path, "")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamageError, match="pipe is no file"):
        read_json(tmp_path / "pipe", "")
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DamageError, match="is not UTF-8 text at byte 7"):
        read_json(tmp_path / "latin", "")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(DamageError, match="has 1,000,000,000 bytes, but 67,108,864 at most are read"):
        read_json(tmp_path / "large", "")


MAPS = st.dictionaries(
    st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
)  # fmt: skip


@given(MAPS)
def test_every_map_is_read_as_it_was_written(value):
    assert parse_map(json.dumps(value)) == value


@given(MAPS, st.data())
def test_no_cut_or_changed_text_raises_anything_else(value, data):
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text) - 1))
    for broken in (text[:at], text[:at] + data.draw(st.characters()) + text[at + 1 :]):
        with suppress(ValueError):
            assert isinstance(parse_map(broken), dict)

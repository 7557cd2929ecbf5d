"""Columns that a run does not use are not read: whatever they contain has no effect on the rows."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from neoplug.data import check_local_sources, load_corpus
from neoplug.data.ingest.sources import open_source
from neoplug.errors import RecipeError

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BROKEN = {"bytes": b"no picture", "path": None}


@pytest.fixture
def pictures():
    """Return a dataset of conversations with an image that no library can decode."""
    import datasets

    table = datasets.Dataset.from_list([{"messages": TALK, "image": BROKEN, "input": BROKEN}] * 4)
    return table.cast_column("image", datasets.Image()).cast_column("input", datasets.Image())


def rows_of(report):
    return report.read[""].rows, report.dropped


def test_an_image_that_cannot_be_decoded_has_no_effect(pictures, tmp_path, section, tiny_tokenizer):
    with pytest.raises(OSError, match="cannot identify image"):
        pictures[0]
    pictures.save_to_disk(tmp_path / "saved")
    pictures.to_parquet(tmp_path / "rows.parquet")
    for source in ("saved", "rows.parquet"):
        corpus = load_corpus(section(tmp_path / source, eval_source=str(tmp_path / source)), tiny_tokenizer)
        assert rows_of(corpus.report) == (4, {})


def test_neither_has_one_in_a_stream(pictures, section, tiny_tokenizer, monkeypatch):
    import datasets

    class Builder:
        hash, config = "0", None

        def as_streaming_dataset(self, split):
            return pictures.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: Builder())
    source = open_source("some/one", streaming=True)
    assert list(source.rows({"messages"})) == [{"messages": TALK}] * 4
    assert [row["image"]["bytes"] for row in source.rows()] == [BROKEN["bytes"]] * 4


def test_rows_of_a_dataset_are_those_that_the_library_gives(tmp_path):
    import datasets

    table = datasets.Dataset.from_list([{"messages": TALK, "n": n} for n in range(3000)]).shuffle(1)
    table.save_to_disk(tmp_path)
    assert list(open_source(str(tmp_path)).rows()) == table.to_list()


def test_parquet_columns_that_are_not_used_are_not_read(tmp_path, section, tiny_tokenizer):
    text = pyarrow.array([f"text {number}" for number in range(4)])
    far = pyarrow.array([2**62] * 4, pyarrow.timestamp("ms"))  # beyond the dates of Python
    latin = pyarrow.Array.from_buffers(pyarrow.string(), 4, pyarrow.array([b"\xe9"] * 4, pyarrow.binary()).buffers())
    table = pyarrow.Table.from_arrays([text, far, latin, far], ["text", "at", "by", "at"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows_of(load_corpus(section(tmp_path / "a.parquet", held_out=1), tiny_tokenizer).report) == (4, {})


def test_a_value_of_a_used_column_that_cannot_be_read_is_a_fault_of_its_row(tmp_path):
    at = pyarrow.array([0, 2**62], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"text": at}), tmp_path / "a.parquet")
    first, second = open_source(str(tmp_path / "a.parquet")).rows()
    assert first["text"].year == 1970
    assert second.startswith("text cannot be read: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"".join(b'{"text": "t%d", "note": "\\ud800"}\n' % n for n in range(4))),
        ("a.csv", b"text,note,note\n" + b"".join(b"t%d,\xe9,\xe9\n" % n for n in range(4))),
    ],
)
def test_a_fault_in_a_column_that_is_not_used_drops_no_row(tmp_path, section, tiny_tokenizer, name, content):
    (tmp_path / name).write_bytes(content)
    assert rows_of(load_corpus(section(tmp_path / name, held_out=1), tiny_tokenizer).report) == (4, {})


def test_columns_of_a_schema_are_listed_where_none_is_known(tmp_path, section):
    parquet.write_table(pyarrow.table({"question": ["a"], "reply": ["b"]}), tmp_path / "a.parquet")
    (problem,) = check_local_sources(section(tmp_path / "a.parquet"))
    assert "the columns found are question, reply" in problem.why


def test_an_error_of_reading_a_dataset_names_the_dataset(tmp_path, section, tiny_tokenizer):
    import datasets

    datasets.Dataset.from_list([{"text": f"text {n}"} for n in range(4)]).save_to_disk(tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        load_corpus(section(tmp_path, held_out=1), tiny_tokenizer)
    assert str(tmp_path) in caught.value.problems[0].what
    assert json.dumps(caught.value.problems[0].path) == '["data", "source"]'

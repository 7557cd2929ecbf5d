"""Each kind of source yields its rows; problems of a source are reported before any model is loaded."""

import csv
import json
from functools import partial

import pyarrow
import pytest
from pyarrow import parquet

from neoplug.data import check_local_sources, load_corpus
from neoplug.data.ingest.folders import files_of_split
from neoplug.data.ingest.sources import open_source
from neoplug.errors import RecipeError


def read_rows(source, split="train"):
    return open_source(source, split).rows()


ROWS = [{"prompt": "1 + 1 = ", "completion": "007"}, {"prompt": 'a "b",\nc', "completion": "é 漢字"}]


def written(folder, suffix, rows=ROWS):
    """Write rows in the format of a suffix; return the file's path."""
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(file)
    elif suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8-sig")
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".csv"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert list(read_rows(str(written(tmp_path, suffix)))) == ROWS


def test_a_loading_script_is_not_run(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    written(folder, ".jsonl")
    assert list(read_rows(str(folder))) == ROWS
    assert not (tmp_path / "ran").exists()


def test_json_lines_under_the_suffix_json(tmp_path):
    file = written(tmp_path, ".jsonl")
    assert list(read_rows(str(file.rename(file.with_suffix(".json"))))) == ROWS


def test_the_library_datasets_reads_the_same_rows_from_the_files(tmp_path, monkeypatch):
    import datasets

    for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
        file = written(tmp_path, suffix)
        theirs = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
        assert list(read_rows(str(file))) == theirs.to_list()


def test_a_module_of_texts():
    from pydoc_data.topics import topics

    assert [row["text"] for row in read_rows("python:pydoc_data.topics")] == list(topics.values())


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\ntwo\nthree\n", ["one", "two", "three"]),
        ("one\nstill one\n\n\n\ntwo  \n", ["one\nstill one", "two"]),
        ("  indented\n\nend", ["indented", "end"]),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_text_files_give_a_row_per_paragraph_or_else_per_line(tmp_path, text, rows, suffix):
    file = tmp_path / f"prose{suffix}"
    file.write_text(text, encoding="utf-8")
    assert [row["text"] for row in read_rows(str(file))] == rows


def test_a_csv_field_may_be_a_whole_document(tmp_path):
    long = "word " * 50_000
    file = written(tmp_path, ".csv", [{"text": long}])
    assert list(read_rows(str(file))) == [{"text": long}]


def test_a_csv_field_may_be_empty_or_absent(tmp_path, section, tiny_tokenizer):
    file = tmp_path / "rows.csv"
    file.write_text('instruction,input,output\nadd 1 and 2,,3\nadd,"",4\nname a colour,of the sky,blue\nname,it\n')
    rows = list(read_rows(str(file)))
    assert [row["input"] for row in rows] == ["", "", "of the sky", "it"]
    assert rows[3]["output"] is None
    data = section(file, held_out=1, max_dropped_rows=0.25)
    assert load_corpus(data, tiny_tokenizer).report.dropped.keys() == {"no output"}


def test_the_files_of_a_folder_are_selected_by_split(tmp_path):
    (tmp_path / "README.md").write_text("About these data.", encoding="utf-8")
    (tmp_path / "test").mkdir()
    for name, word in (
        ("train-0.jsonl", "a"),
        ("train-1.jsonl", "b"),
        ("test/part.jsonl", "c"),
        ("contest.jsonl", "d"),
    ):
        (tmp_path / name).write_text(json.dumps({"text": word}), encoding="utf-8")
    assert [row["text"] for row in read_rows(str(tmp_path))] == ["a", "b"]
    assert [row["text"] for row in read_rows(str(tmp_path), "test")] == ["c"]
    with pytest.raises(RecipeError, match="no split `validation`") as caught:
        read_rows(str(tmp_path), "validation")
    assert caught.value.problems[0].path == ("data", "split")
    assert caught.value.problems[0].fix == "it has test, train"


def test_all_files_of_a_folder_without_splits_are_train(tmp_path):
    for name in ("b.json", "a.csv", ".hidden.json", "notes.txt"):
        (tmp_path / name).write_text("[]", encoding="utf-8")
    assert [file.name for file in files_of_split(tmp_path, "train").files] == ["a.csv", "b.json"]


def test_a_dataset_saved_to_disk(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    assert list(read_rows(str(tmp_path / "one"))) == list(read_rows(str(tmp_path / "two"))) == ROWS
    assert list(read_rows(str(tmp_path / "two"), "test")) == ROWS[1:]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": \n', "no row of"),
        ("a.json", '{"text": }', "Expecting value"),
        ("a.csv", "text\none,two\n", "more fields than the header"),
        ("a.csv", '"te"xt,more\none,two\n', "cannot be read"),
        ("a.csv", "text,n,text\none,1,two\n", "`text` names several columns"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.xml", "<a/>", "is not a data file of a known format"),
        ("a.jsonl", "", "has no rows"),
    ],
)
def test_a_file_whose_content_does_not_match_its_suffix_is_refused(tmp_path, section, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    problem = check_local_sources(section(tmp_path / name))[0]
    assert said in problem.what
    assert problem.path == ("data", "source")


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path, section):
    names = ["text", "n", "text"]
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["one"])] * 3, names), tmp_path / "a.parquet")
    assert "`text` names several columns" in check_local_sources(section(tmp_path / "a.parquet"))[0].what


def test_text_in_another_encoding_is_refused(tmp_path, section):
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    assert "can be read; the first is not UTF-8" in check_local_sources(section(tmp_path / "a.txt"))[0].what


LATIN = "é".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": \n\n["x"]\n{"text": "' + LATIN + b'"}\n{"text": "\\ud800"}\n[' + b"[" * 10**5
            + b'\n{"text": "y"}\n',
            ["x", "not JSON", "list, but a row", "not UTF-8", "half a character", "not JSON", "y"],
        ),
        ("a.json", b'[{"text": "x"}, 3, {"text": "\\uDC00"}]', ["x", "int, but a row", "half a character"]),
        ("a.csv", b'text\nx\none,two\n' + LATIN + b'\n"a"b\ny\n', ["x", "more fields", "not UTF-8", "not CSV", "y"]),
        ("a.csv", b'text\nx\n\n"a\ny\n\n"z\n."\n', ["x", "not CSV", "y", "z\n."]),  # closed by the next row's quote
        ("a.csv", b'text\n\n\n"a\ny\n\n"z\n."\n"b\nx\n', ["not CSV", "y", "z\n.", "not CSV", "x"]),  # never closed
        ("a.txt", b"x\n" + LATIN + b"\ny\n", ["x", "not UTF-8", "y"]),
        ("a.md", b"x\nz\n\n\n" + LATIN + b"\nz\n\ny\n", ["x\nz", "not UTF-8", "y"]),
    ],
)  # fmt: skip
def test_an_invalid_line_does_not_end_the_reading(tmp_path, name, content, rows):
    (tmp_path / name).write_bytes(content)
    found = list(read_rows(str(tmp_path / name)))
    assert len(found) == len(rows)
    for row, expected in zip(found, rows, strict=True):
        assert row == {"text": expected} if isinstance(row, dict) else expected in row


def test_an_error_of_the_operating_system_while_reading_is_reported(tmp_path, section):
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # it can be opened, but its first page cannot be read
    assert "cannot be read: [Errno" in check_local_sources(section(tmp_path / "a.txt"))[0].what


def test_a_line_of_a_megabyte_loses_no_token(tmp_path, section, tiny_tokenizer):
    word = " the"
    file = written(tmp_path, ".jsonl", [{"text": word * 250_000}, {"text": word}, {"text": word * 2}])
    report = load_corpus(section(file, held_out=1), tiny_tokenizer).report
    of_a_word = len(tiny_tokenizer(word)["input_ids"])
    # The first token of each text is not in the loss, its end token is.
    assert report.train.answer_tokens + report.held_out.answer_tokens == 250_003 * of_a_word


def test_in_parquet_only_the_row_that_is_not_utf8_is_lost(tmp_path):
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"x", LATIN, b"y"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    assert list(read_rows(str(tmp_path / "a.parquet"))) == [{"text": "x"}, "not UTF-8", {"text": "y"}]


def test_a_missing_file_or_folder_is_reported(tmp_path, section):
    written(tmp_path, ".jsonl")
    missing = check_local_sources(section(tmp_path / "row.jsonl", eval_source=str(tmp_path / "no" / "x.json")))
    assert "did you mean `rows.jsonl`?" in missing[0].what
    assert [problem.path for problem in missing] == [("data", "source"), ("data", "eval_source")]
    assert "no folder" in missing[1].fix
    assert "cannot be imported" in check_local_sources(section("python:no_such_module"))[0].what
    assert "no map of texts named `json`" in check_local_sources(section("python:json"))[0].what


def test_a_single_file_has_one_split(tmp_path, section):
    file = written(tmp_path, ".jsonl")
    assert check_local_sources(section(file, split="test"))[0].path == ("data", "split")
    assert check_local_sources(section(file)) == []


def test_the_check_of_local_sources_does_not_request_a_hub_id_and_reading_it_offline_is_a_problem(section):
    source = section("nobody/has-such-a-dataset")
    assert check_local_sources(source) == []
    with pytest.raises(RecipeError, match=r"nobody/has-such-a-dataset \(split train\) cannot be loaded"):
        open_source(source.source)


@pytest.fixture
def hub(monkeypatch):
    """Replace a dataset of the hub; return it: it has 1,000 rows, counts those that are read, and has a commit."""
    import datasets

    class Hub:
        hash = "0" * 40
        config = None
        drawn = 0

        def as_streaming_dataset(self, split):
            assert split == "train"
            return self.rows()

        def rows(self):
            for number in range(1000):
                self.drawn += 1
                yield {"text": f"row {number}"}

    found = Hub()
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: found)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the dataset was downloaded"))
    return found


def test_a_stream_is_read_once_and_not_beyond_max_rows(hub, section, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path))
    data = section("someone/much", streaming=True, max_rows=50, held_out=5)
    first = load_corpus(data, tiny_tokenizer)
    assert hub.drawn == first.report.read[""].rows == 50
    texts = {
        tiny_tokenizer.decode(d.input_ids[:-1]) for d in [d for row in first.rows for d in row] + [*first.held_out]
    }
    assert texts == {f"row {number}" for number in range(50)}
    assert load_corpus(data, tiny_tokenizer).fingerprint == first.fingerprint
    assert hub.drawn == 50
    hub.hash = "1" * 40
    load_corpus(data, tiny_tokenizer)
    assert hub.drawn == 100


def test_an_interrupted_stream_is_an_error(hub, section, tiny_tokenizer, monkeypatch):
    def rows():
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "rows", rows)
    with pytest.raises(RecipeError, match=r"someone/much \(split train\) cannot be loaded: ConnectionError: reset"):
        load_corpus(section("someone/much", streaming=True, max_rows=9), tiny_tokenizer)


def test_a_dataset_builder_of_the_library_is_streamed(tmp_path, monkeypatch):
    import datasets

    file, load = written(tmp_path, ".jsonl"), datasets.load_dataset_builder
    builder = partial(load, "json", data_files=str(file), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder())
    before = open_source("some/one", streaming=True)
    assert list(before.rows()) == ROWS
    identity = json.dumps(before.identity())
    file.write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert json.dumps(open_source("some/one", streaming=True).identity()) != identity


def test_the_first_rows_of_a_local_source(tmp_path, section, tiny_tokenizer):
    file = written(tmp_path, ".jsonl", [{"text": f"row {number}"} for number in range(9)])
    assert load_corpus(section(file, max_rows=4, held_out=1), tiny_tokenizer).report.read[""].rows == 4


def test_eval_split_is_another_split_of_the_source(tmp_path, section, tiny_tokenizer):
    for name, word in (("train", "alpha"), ("test", "beta")):
        rows = [{"text": f"{word} {n}"} for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(section(tmp_path, eval_split="test", packing=False), tiny_tokenizer)
    trained, measured = [row[0] for row in corpus.rows], list(corpus.held_out)
    for documents, word in ((trained, "alpha"), (measured, "beta")):
        texts = [tiny_tokenizer.decode(document.input_ids, skip_special_tokens=True) for document in documents]
        assert texts == [f"{word} {n}" for n in range(4)]
    own = section(tmp_path / "train.jsonl", eval_source=str(tmp_path), eval_split="test", packing=False)
    assert len(load_corpus(own, tiny_tokenizer).held_out) == 4


@pytest.mark.parametrize("key", ["eval_split", "eval_source"])
def test_unusable_evaluation_rows_name_the_key_of_the_recipe(tmp_path, section, tiny_tokenizer, key):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    named = {"eval_split": "test"} if key == "eval_split" else {"eval_source": str(tmp_path / "test.jsonl")}
    with pytest.raises(RecipeError) as caught:
        load_corpus(section(tmp_path, **named), tiny_tokenizer)
    (problem,) = caught.value.problems
    assert problem.path == ("data", key)
    assert f"1 of the 2 rows of `{key}`" in problem.what


def test_rows_of_several_kinds_in_a_csv_file(tmp_path, section, tiny_tokenizer):
    """CSV has no null: a row of one kind has empty texts in the columns of the others."""
    names = ("prompt", "completion", "instruction", "output", "text")
    rows = [{"prompt": "p", "completion": "c"}, {"instruction": "i", "output": "o"}, {"text": "t"}, {"completion": "d"}]
    file = written(tmp_path, ".csv", [dict.fromkeys(names, "") | row for row in rows])
    report = load_corpus(section(file, held_out=1), tiny_tokenizer).report
    assert {kind: counts.rows for kind, counts in report.kinds.items()} == {"completion": 2, "alpaca": 1, "text": 1}
    assert not report.dropped


def test_a_missing_eval_split_is_refused(tmp_path, section):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    for source, said in ((tmp_path, "has no split `test`"), (tmp_path / "train.jsonl", "has one split, `train`")):
        (problem,) = check_local_sources(section(source, eval_split="test"))
        assert said in problem.what
        assert problem.path == ("data", "eval_split")
    with pytest.raises(ValueError, match="is the split that is trained on"):
        section(tmp_path, eval_split="train")

"""Folders and globs: compressed files, configurations and splits; every file that is not read is named."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from pyarrow import parquet

from neoplug.data import check_local_sources, load_corpus
from neoplug.data.ingest.folders import files_of_split
from neoplug.data.ingest.sources import open_source
from neoplug.errors import RecipeError

ROWS = [{"text": f"row {number} é"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(folder, *names):
    """Write files of one row, whose text is the file's name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")


def texts(source, split="train", **options):
    return [row["text"] for row in open_source(str(source), split, **options).rows()]


def zstandard(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("twice", [False, True])
def test_a_compressed_file_has_the_rows_of_the_file(tmp_path, compression, twice):
    content = COMPRESS[compression](LINES) * (2 if twice else 1)  # concatenated streams, as parallel compressors write
    (tmp_path / f"rows.jsonl{compression}").write_bytes(content)
    assert list(open_source(str(tmp_path / f"rows.jsonl{compression}")).rows()) == ROWS * (2 if twice else 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS).encode()),
        ("a.csv", b"text\n" + "".join(row["text"] + "\n" for row in ROWS).encode()),
        ("a.txt", "".join(row["text"] + "\n" for row in ROWS).encode()),
    ],
)
def test_every_format_is_read_compressed(tmp_path, name, content):
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert list(open_source(str(tmp_path / f"{name}.gz")).rows()) == ROWS


def test_compressed_parquet(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert list(open_source(str(tmp_path / "a.parquet.gz")).rows()) == ROWS


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_truncated_compressed_file_is_refused(tmp_path, section, compression):
    (tmp_path / f"a.jsonl{compression}").write_bytes(COMPRESS[compression](LINES * 50)[:-9])
    (problem,) = check_local_sources(section(tmp_path / f"a.jsonl{compression}"))
    assert "cannot be read" in problem.what


def test_what_is_not_compressed_as_its_name_says_is_refused(tmp_path, section):
    (tmp_path / "a.jsonl.zst").write_bytes(LINES)
    assert "cannot be read" in check_local_sources(section(tmp_path / "a.jsonl.zst"))[0].what


def test_a_folder_of_compressed_shards(tmp_path):
    for number in range(2):
        (tmp_path / f"train-{number:05}-of-00002.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(LINES))
    assert len(texts(tmp_path)) == 6


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path, section, tiny_tokenizer):
    write(
        tmp_path, "train-0.jsonl", "train-1.jsonl", "extra.jsonl", "test.jsonl", "notes.txt", "archive.tar", ".git.json"
    )
    (tmp_path / "dataset_infos.json").write_text("{}")
    report = load_corpus(section(tmp_path, held_out=1), tiny_tokenizer).report
    (line,) = [line for line in report.lines() if "not read" in line]
    assert line.endswith("not read: archive.tar, dataset_infos.json, extra.jsonl, notes.txt")
    (tmp_path / "more.jsonl").write_text("{}")  # the tokens are read from the cache, and the line is still true
    assert any(
        "more.jsonl" in line for line in load_corpus(section(tmp_path, held_out=1), tiny_tokenizer).report.lines()
    )


def test_a_glob_reads_the_files_that_match(tmp_path):
    write(tmp_path, "a.jsonl", "b.jsonl", "c.json", "deep/d.jsonl")
    assert texts(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts(tmp_path / "[bc].json*") == ["b.jsonl", "c.json"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl", "deep/d.jsonl"]


def test_a_glob_of_several_splits_reads_one_of_them_and_names_the_rest(tmp_path):
    write(tmp_path, "train_a.jsonl", "train_b.jsonl", "test.jsonl")
    source = open_source(str(tmp_path / "*.jsonl"))
    assert [row["text"] for row in source.rows()] == ["train_a.jsonl", "train_b.jsonl"]
    assert "test.jsonl" in source.notes[0]
    assert texts(tmp_path / "*.jsonl", "test") == ["test.jsonl"]
    assert texts(tmp_path / "tes*.jsonl") == ["test.jsonl"]
    with pytest.raises(RecipeError, match="has no split `validation`"):
        texts(tmp_path / "*.jsonl", "validation")


def test_a_glob_without_a_match_is_refused(tmp_path, section):
    (problem,) = check_local_sources(section(tmp_path / "*.jsonl"))
    assert "no data file matches" in problem.what
    assert problem.path == ("data", "source")


def test_the_whole_name_of_a_split_is_compared(tmp_path):
    write(tmp_path, "data/train_sft-00000-of-00001.jsonl", "data/train_gen-00000-of-00001.jsonl", "data/test_sft.jsonl")
    with pytest.raises(RecipeError, match="2 splits that `train` may mean: train_gen, train_sft") as caught:
        texts(tmp_path)
    assert caught.value.problems[0].path == ("data", "split")
    assert texts(tmp_path, "train_sft") == ["data/train_sft-00000-of-00001.jsonl"]
    assert texts(tmp_path, "test_sft") == texts(tmp_path, "test") == ["data/test_sft.jsonl"]
    with pytest.raises(RecipeError, match="no split `train_sfd`; did you mean `train_sft`") as caught:
        texts(tmp_path, "train_sfd")
    assert caught.value.problems[0].fix == "it has test_sft, train_gen, train_sft"


def test_a_split_of_exactly_the_name_is_read_and_a_longer_name_is_not(tmp_path):
    write(tmp_path, "train.jsonl", "train_sft.jsonl")
    assert texts(tmp_path) == ["train.jsonl"]
    assert "train_sft.jsonl" in open_source(str(tmp_path)).notes[0]


def test_numbered_shards_are_one_split(tmp_path):
    names = ["2023-train.jsonl", "train-00000-of-00002-0123456789abcdef.jsonl", "train-1.jsonl", "train/0/part.jsonl"]
    write(tmp_path, *names)
    assert sorted(texts(tmp_path)) == sorted(names)


def test_folders_around_a_split_are_configurations(tmp_path):
    write(tmp_path, "en/train.jsonl", "fr/train.jsonl", "fr/test.jsonl")
    with pytest.raises(RecipeError, match="2 configurations: en, fr") as caught:
        texts(tmp_path)
    assert caught.value.problems[0].path == ("data", "name")
    assert texts(tmp_path, name="fr") == ["fr/train.jsonl"]
    assert texts(tmp_path, "test") == ["fr/test.jsonl"]  # only one has this split
    with pytest.raises(RecipeError, match="no configuration `frr`; did you mean `fr`") as caught:
        texts(tmp_path, name="frr")
    assert caught.value.problems[0].fix == "it has en, fr"


def test_folders_without_splits_are_read_together_and_named(tmp_path):
    write(tmp_path, "books/a.jsonl", "web/b.jsonl")
    source = open_source(str(tmp_path))
    assert [row["text"] for row in source.rows()] == ["books/a.jsonl", "web/b.jsonl"]
    assert "(books, web)" in source.notes[0]
    assert texts(tmp_path, name="web") == ["web/b.jsonl"]


CARD = """---
configs:
- config_name: sft
  data_files:
  - split: train
    path: [one/a-*.jsonl, two/*.jsonl]
  - {split: test, path: one/b.jsonl}
- config_name: raw
  data_files: raw.jsonl
---
# About
"""


def test_the_configurations_of_a_dataset_card_are_those_that_datasets_reads(tmp_path):
    import datasets

    write(tmp_path, "one/a-0.jsonl", "one/b.jsonl", "two/c.jsonl", "raw.jsonl", "other.jsonl")
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    for name, split in (("sft", "train"), ("sft", "test"), ("raw", "train")):
        theirs = datasets.load_dataset(str(tmp_path), name, split=split, cache_dir=str(tmp_path / ".cache"))
        assert texts(tmp_path, split, name=name) == theirs["text"][:]
    assert "README.md, other.jsonl" in files_of_split(tmp_path, "train", name="raw").notes[0]
    with pytest.raises(RecipeError, match="2 configurations: sft, raw"):
        texts(tmp_path)
    (tmp_path / "README.md").write_text(CARD.replace("name: raw", "name: raw\n  default: true"), encoding="utf-8")
    assert texts(tmp_path) == ["raw.jsonl"]


@pytest.mark.parametrize("option", ["name", "revision"])
def test_a_local_file_has_no_configuration_and_no_revision(tmp_path, section, option):
    write(tmp_path, "a.jsonl")
    (problem,) = check_local_sources(section(tmp_path / "a.jsonl", **{option: "main"}))
    assert problem.path == ("data", option)
    assert problem.fix == f"remove `{option}`"


def test_several_splits_of_a_saved_dataset_are_compared_by_their_whole_names(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train_sft": table, "train_gen": table}).save_to_disk(tmp_path)
    with pytest.raises(RecipeError, match="has no split `train`") as caught:
        texts(tmp_path)
    assert caught.value.problems[0].fix == "it has train_sft, train_gen"


class Loader:
    """Takes the place of the functions of `datasets` that load from the hub: it records its arguments, then fails."""

    def __init__(self, error):
        self.error, self.calls = error, []

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        raise self.error


@pytest.mark.parametrize("streaming", [False, True])
def test_name_and_revision_reach_the_hub_and_its_list_of_configurations_is_whole(section, monkeypatch, streaming):
    import datasets

    names = [f"subject_{number}" for number in range(60)]
    load = Loader(ValueError(f"BuilderConfig 'subject_6o' not found.\nAvailable: {names}"))
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(RecipeError) as caught:
        open_source("some/one", streaming=streaming, name="subject_6o", revision="v2")
    ((args, options),) = load.calls
    assert args == ("some/one",)
    assert {"name": "subject_6o", "revision": "v2"}.items() <= options.items()
    (problem,) = caught.value.problems
    assert all(name in problem.what for name in names)
    assert "did you mean `subject_6" in problem.what
    assert problem.path == ("data", "name")


def test_name_and_revision_of_the_source_are_those_of_the_same_evaluation_source(section):
    data = section("some/one", name="sft", revision="v2", eval_split="test")
    assert (data.parts[""].name, data.parts[""].revision) == ("sft", "v2")
    assert data.read_like("some/one", "test").name == "sft"
    assert data.read_like("some/other").name is None

"""Rows are tokenised once: the store equals a computation in memory and is reused."""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from neoplug.data import dataset as corpus_module
from neoplug.data import load_corpus
from neoplug.data.encode.lengths import Fitted
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.store import spool as spool_module
from neoplug.data.store.spool import Spool
from neoplug.data.store.token_files import Store, write_record

MAX_LENGTH = 40


def written(folder, name, texts):
    file = folder / name
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


@pytest.fixture
def texts():
    """Return texts of different lengths, two of which are equal."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "back", "again"]
    lengths = np.random.default_rng(0).integers(1, 60, 80)
    rows = [" ".join(words[(n + k) % 12] for k in range(length)) for n, length in enumerate(lengths)]
    return [*rows, rows[3]]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Use an empty token cache; return its folder."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tokens"


def in_memory(texts, tokenizer, held_out):
    """Return the tokens of the training and of the held-out documents, computed as documented and without a store."""
    digests = [hashlib.sha256(json.dumps({"text": text}, separators=(",", ":")).encode()).hexdigest() for text in texts]
    limit = sorted(digests)[held_out - 1]
    sides = {True: [], False: []}
    for text, digest in zip(texts, digests, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, MAX_LENGTH - 1):
            sides[digest <= limit].append(ids[start : start + MAX_LENGTH])
    return sides[False], sides[True]


def sha256(rows):
    """Return the fingerprint by its definition: for each row, its number of documents, then their tokens and masks."""
    parts = []
    for row in rows:
        parts.append(np.array([len(row)], "<i8"))
        for ids in row:
            mask = np.arange(len(ids)) > 0
            parts += [np.array([len(ids)], "<i8"), np.array(ids, "<i8"), mask.astype("u1")]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_the_store_equals_a_computation_in_memory(home, tmp_path, texts, tiny_tokenizer, section):
    file = written(tmp_path, "rows.jsonl", texts)
    training, held_out = in_memory(texts, tiny_tokenizer, 7)
    loose = load_corpus(section(file, held_out=7, packing=False, max_length=MAX_LENGTH), tiny_tokenizer)
    assert [row[0].input_ids.tolist() for row in loose.rows] == training
    assert [document.input_ids.tolist() for document in loose.held_out] == held_out
    assert loose.fingerprint == sha256([*([ids] for ids in training), held_out])
    packed = load_corpus(section(file, held_out=7, max_length=MAX_LENGTH), tiny_tokenizer)
    rows = [[document.input_ids.tolist() for document in row] for row in packed.rows]
    assert sorted(ids for row in rows for ids in row) == sorted(training)
    assert packed.fingerprint == sha256([*rows, held_out])
    assert packed.row_lengths.tolist() == [sum(map(len, row)) for row in rows]
    assert packed.longest["student"] == max(map(len, training + held_out))
    assert packed.ids_read_by_both.tolist() == sorted({token for ids in training + held_out for token in ids})
    assert packed.rows[-1][0].input_ids.tolist() == rows[-1][0]
    assert len(packed.rows[2:5]) == 3
    with pytest.raises(IndexError):
        packed.rows[len(rows)]


def test_a_second_load_tokenises_nothing_and_has_the_same_report(
    home, tmp_path, texts, tiny_tokenizer, section, monkeypatch
):
    file = written(tmp_path, "rows.jsonl", [*texts, ""])
    first = load_corpus(section(file), tiny_tokenizer)
    monkeypatch.setattr(RowEncoder, "encode", lambda *_, **__: pytest.fail("rows were tokenised again"))
    moved = file.rename(tmp_path / "moved.jsonl")
    again = load_corpus(section(moved), tiny_tokenizer)
    assert again.report.dropped["empty text"].first == [len(texts)]
    assert again.report.lines() == [line.replace(str(file), str(moved)) for line in first.report.lines()]
    assert again.fingerprint == first.fingerprint


def test_the_report_names_the_evaluation_file_of_this_recipe_where_the_tokens_are_cached(
    home, tmp_path, texts, tiny_tokenizer, section
):
    file, evaluation = written(tmp_path, "rows.jsonl", texts), written(tmp_path, "evaluation.jsonl", texts[:3])
    load_corpus(section(file, eval_source=str(evaluation)), tiny_tokenizer)
    moved = evaluation.rename(tmp_path / "moved.jsonl")
    assert load_corpus(section(file, eval_source=str(moved)), tiny_tokenizer).report.eval_read.source == str(moved)
    assert len([folder for folder in home.iterdir() if folder.is_dir()]) == 1


def test_a_change_of_anything_that_tokens_depend_on_makes_another_store(
    home, tmp_path, texts, tiny_tokenizer, llama_tokenizer, section
):
    def stores():
        return {folder.name for folder in home.iterdir() if folder.is_dir()}

    file = written(tmp_path, "rows.jsonl", texts)
    load_corpus(section(file), tiny_tokenizer)
    load_corpus(section(file), tiny_tokenizer)
    assert len(stores()) == 1
    load_corpus(section(file, max_length=64), tiny_tokenizer)
    load_corpus(section(file), llama_tokenizer)
    load_corpus(section(file, eval_source=str(written(tmp_path, "other.jsonl", texts[:3]))), tiny_tokenizer)
    written(tmp_path, "rows.jsonl", [*texts[:-1], texts[-1] + "!"])
    load_corpus(section(file), tiny_tokenizer)
    assert len(stores()) == 5


@pytest.mark.parametrize("name", ["input_ids.npy", "bounds.npy", "neoplug.json", "contents.json"])
def test_a_damaged_store_is_rebuilt_with_a_warning(home, tmp_path, texts, tiny_tokenizer, section, caplog, name):
    data = section(written(tmp_path, "rows.jsonl", texts))
    before = load_corpus(data, tiny_tokenizer)
    (folder,) = (folder for folder in home.iterdir() if folder.is_dir())
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    (home / f".{folder.name}.abc.partial").mkdir()  # as left by a process that was killed
    with caplog.at_level(logging.WARNING):
        after = load_corpus(data, tiny_tokenizer)
    assert "damaged" in caplog.text
    assert after.fingerprint == before.fingerprint
    assert after.held_out[0].input_ids.tolist() == before.held_out[0].input_ids.tolist()
    assert [path.name for path in home.iterdir() if path.is_dir()] == [folder.name]


def test_of_two_simultaneous_loads_one_tokenises(home, tmp_path, texts, tiny_tokenizer, section, monkeypatch):
    made = []
    make = corpus_module.make_store
    monkeypatch.setattr(corpus_module, "make_store", lambda *args: made.append(1) or make(*args))
    data = section(written(tmp_path, "rows.jsonl", texts))
    with ThreadPoolExecutor(2) as threads:
        corpora = list(threads.map(lambda _: load_corpus(data, tiny_tokenizer), range(2)))
    assert len(made) == 1
    assert corpora[0].fingerprint == corpora[1].fingerprint


@pytest.mark.parametrize("tokens_at_once", [1, 4, 10, 2**20])
def test_the_teachers_text_is_stored_with_the_students(tmp_path, monkeypatch, tokens_at_once):
    monkeypatch.setattr(spool_module, "TOKENS_AT_ONCE", tokens_at_once)
    ids, mask = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) * 2, np.arange(10) > 2
    taught_ids, taught_mask = np.arange(9) + 40, np.arange(9) > 6
    own = Fitted(1, np.r_[0:4, taught_ids], np.r_[np.arange(4) > 1, taught_mask], *np.array([[4], [9], [2]]))
    windows = Fitted(2, ids, mask, *np.array([[5, 5], [0, 0], [2, 4]]))
    with Spool(tmp_path) as spool:
        for digest, fitted in (("ab" * 32, own), ("cd" * 32, None), ("ef" * 32, windows)):
            spool.add(digest, fitted, 10)
        assert spool.max_text_lengths.tolist() == [9, 5, 5]
        fingerprint = spool.write(tmp_path, np.array([2, 0, 1]), np.array([0, 2]))
    write_record(tmp_path)
    store = Store(tmp_path)
    (window, document), (first_window,) = store.rows[0], store.held_out
    assert (window.row, document.row, first_window.row) == (12, 11, 12)
    assert [document.input_ids.tolist(), document.teacher_ids.tolist()] == [[0, 1, 2, 3], taught_ids.tolist()]
    assert document.loss_mask.tolist() == [False, False, True, True]
    assert document.teacher_loss_mask.tolist() == taught_mask.tolist()
    assert [window.input_ids.tolist(), window.loss_mask.tolist()] == [ids[5:].tolist(), [True] * 5]
    assert [first_window.input_ids.tolist(), first_window.teacher_ids] == [ids[:5].tolist(), None]
    assert store.longest == {"student": 5, "teacher": 9}
    assert store.row_lengths.tolist() == [9]
    assert store.used.tolist() == sorted({*ids, 2, 3})  # of a text of the student's own, its answers alone
    assert store.used_by["student"].tolist() == sorted({*ids, 0, 1, 2, 3})
    assert store.used_by["teacher"].tolist() == sorted({*ids, *taught_ids})
    number = np.dtype("<i8").type
    of_teacher = hashlib.sha256(
        b"".join(part.tobytes() for part in (number(1), number(9), taught_ids.astype("<i8"), taught_mask))
    )
    parts = [number(2), number(5), ids[5:], mask[5:], number(4), np.arange(4), np.arange(4) > 1]
    held_out = [number(1), number(5), ids[:5], mask[:5]]
    stream = [b"".join(part.tobytes() for part in some) for some in (parts, held_out)]
    assert fingerprint == hashlib.sha256(stream[0] + of_teacher.hexdigest().encode() + stream[1]).hexdigest()

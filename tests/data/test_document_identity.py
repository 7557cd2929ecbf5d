"""A document keeps its number and its content hash from the token store to the micro-batch."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data import BatchSampler, Document, collate, load_corpus, without_answers
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.recipe import Data
from neoplug.registry import Plugins
from neoplug.training.batch_source import BatchSource

MAX_LENGTH = 24
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "back", "again"]
LENGTHS = np.random.default_rng(0).integers(1, 60, 40)
TEXTS = [" ".join(WORDS[(n + k) % 12] for k in range(length)) for n, length in enumerate(LENGTHS)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Use an empty token cache."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))


@pytest.fixture
def written(tmp_path):
    """Return a function that writes rows to a file and returns its path."""

    def write(texts, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return str(file)

    return write


def trained(corpus):
    return [document for row in corpus.rows for document in row]


def identities(documents):
    return [(document.number, document.content_hash) for document in documents]


def hashes_by_text(corpus):
    return {tuple(one.input_ids): one.content_hash for one in [*trained(corpus), *corpus.held_out]}


def hash_by_definition(*texts):
    """Return the content hash of texts, each (ids, mask), by its definition: one number after the other."""
    content = b"neoplug.Document 1"
    for ids, mask in texts:
        content += struct.pack("<q", len(ids))
        content += b"".join(struct.pack("<q", token) for token in ids)
        content += bytes(1 if answer else 0 for answer in list(mask)[1:])
    return hashlib.sha256(content).hexdigest()


def with_mask(ids, mask, **others):
    return Document(np.array(ids), np.array(mask, bool), 0, **others)


text = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=8)


@settings(deadline=None)
@given(text, st.none() | text)
def test_the_content_hash_is_its_documented_format(student, teacher):
    ids, mask = zip(*student, strict=True)
    alone = hash_by_definition((ids, mask))
    document = with_mask(ids, mask)
    assert document.content_hash == alone
    assert replace(document, row=7, number=3).content_hash == alone
    assert with_mask(ids, mask, teacher_ids=np.array(ids), teacher_loss_mask=np.array(mask)).content_hash == alone
    if teacher is not None and (teacher[0][0], teacher[1:]) != (student[0][0], student[1:]):
        other_ids, other_mask = zip(*teacher, strict=True)
        both = replace(document, teacher_ids=np.array(other_ids), teacher_loss_mask=np.array(other_mask, bool))
        assert both.content_hash == hash_by_definition((ids, mask), (other_ids, other_mask))


def test_other_tokens_masks_or_teacher_texts_give_another_hash():
    ids, mask = np.arange(4), np.array([False, False, True, True])
    documents = [
        Document(ids, mask, 0),
        Document(ids[:3], mask[:3], 0),
        Document(ids + 1, mask, 0),
        Document(ids, np.array([False, True, True, True]), 0),
        Document(ids, mask, 0, np.append(ids, 9)[1:], mask),
        Document(ids, mask, 0, ids, np.array([False, True, False, True])),
    ]
    assert len({document.content_hash for document in documents}) == len(documents)


def test_the_first_tokens_mask_is_not_content():
    ids = np.arange(4)
    assert with_mask(ids, [1, 0, 1, 1]).content_hash == with_mask(ids, [0, 0, 1, 1]).content_hash


@pytest.mark.parametrize("packing", [True, False])
def test_documents_are_numbered_within_their_split_in_the_stores_order(written, section, tiny_tokenizer, packing):
    data = section(written(TEXTS), held_out=7, packing=packing, max_length=MAX_LENGTH)
    corpus = load_corpus(data, tiny_tokenizer)
    documents = trained(corpus)
    assert len({document.row for document in documents}) < len(documents)  # long rows became several windows
    assert [document.number for document in documents] == list(range(len(documents)))
    assert [document.number for document in corpus.held_out] == list(range(len(corpus.held_out)))
    assert corpus.rows[-1][-1].number == len(documents) - 1
    assert [document.number for document in corpus.held_out[2:4]] == [2, 3]


def test_documents_of_several_sources_have_consecutive_numbers(written, tiny_tokenizer):
    files = {"first": written(TEXTS[:20], "first.jsonl"), "second": written(TEXTS[20:], "second.jsonl")}
    sources = {name: {"source": file, "weight": 1.0} for name, file in files.items()}
    corpus = load_corpus(Data(sources=sources, max_length=MAX_LENGTH, held_out=3), tiny_tokenizer)
    documents = trained(corpus)
    assert [document.number for document in documents] == list(range(len(documents)))
    assert [document.number for document in corpus.held_out] == list(range(len(corpus.held_out)))


def test_equal_texts_have_equal_hashes_in_any_store_split_and_packing(written, section, tiny_tokenizer):
    file = written([*TEXTS, TEXTS[3]])
    corpus = load_corpus(section(file, held_out=7, max_length=MAX_LENGTH), tiny_tokenizer)
    seen = [one.content_hash for one in [*trained(corpus), *corpus.held_out] if one.row in (3, len(TEXTS))]
    assert len(set(seen)) * 2 == len(seen)
    other = section(written(TEXTS[::-1], "other.jsonl"), held_out=3, packing=False, max_length=MAX_LENGTH)
    assert hashes_by_text(load_corpus(other, tiny_tokenizer)) == hashes_by_text(corpus)
    assert len(set(hashes_by_text(corpus).values())) == len(hashes_by_text(corpus))


def test_a_second_load_gives_the_same_identities(written, section, tiny_tokenizer, monkeypatch):
    data = section(written(TEXTS), held_out=7, max_length=MAX_LENGTH)
    first = load_corpus(data, tiny_tokenizer)
    monkeypatch.setattr(RowEncoder, "encode", lambda *_, **__: pytest.fail("rows were tokenised again"))
    again = load_corpus(data, tiny_tokenizer)
    assert identities(trained(again)) == identities(trained(first))
    assert identities(again.held_out) == identities(first.held_out)


def run_of(corpus, rank, world):
    """Return the micro-batches of a rank."""
    sampler = BatchSampler(len(corpus.rows), batch_size=2, accumulation=2, world=world, seed=5)
    return BatchSource(plugins=Plugins({}), sampler=sampler, rank=rank, corpus=corpus, seed=5)


def documents_of_steps(corpus, steps, rank=0, world=1):
    """Return for each step the documents of its micro-batches, without micro-batches that have no rows."""
    run = run_of(corpus, rank, world)
    return [[d for batch, real in run.micro_batches(step, 0.0) if real for d in batch.documents] for step in steps]


def test_ranks_and_a_resumed_run_have_the_documents_of_a_single_process(written, section, tiny_tokenizer):
    data = section(written(TEXTS), held_out=7, max_length=MAX_LENGTH)
    corpus = load_corpus(data, tiny_tokenizer)
    epoch = run_of(corpus, 0, 2).sampler.steps_per_epoch
    assert len(corpus.rows) % 8  # the last step of an epoch is not full
    ranks = [documents_of_steps(corpus, range(epoch), rank, world=2) for rank in (0, 1)]
    every = [document for steps in ranks for documents in steps for document in documents]
    assert sorted(identities(every)) == sorted(identities(trained(corpus)))
    whole = documents_of_steps(corpus, range(9))
    resumed = documents_of_steps(load_corpus(data, tiny_tokenizer), range(4, 9))
    assert list(map(identities, resumed)) == list(map(identities, whole[4:]))


def test_a_document_without_answers_that_fills_a_step_has_no_number():
    assert without_answers(replace(with_mask(range(4), [0, 0, 1, 1]), number=0)).number == -1


def test_a_batch_keeps_its_documents():
    mask = np.array([False, True, True])
    documents = [Document(np.arange(3), mask, 0), Document(np.arange(3), mask, 1, np.arange(5), np.arange(5) > 2)]
    batch = collate(documents)
    for same in (batch, batch.to("meta"), batch.for_teacher()):
        assert all(mine is theirs for mine, theirs in zip(same.documents, documents, strict=True))
    assert documents[1].as_teacher().number == documents[1].number


masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(deadline=None)
@given(masks, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_document_index_equals_a_loop_over_documents(masks, prompt, random):
    documents = []
    for mask in masks:
        answers = [False, *mask[1:]]
        teacher = np.array([False] * prompt + answers)
        documents.append(
            with_mask(range(len(mask)), answers, teacher_ids=np.arange(len(teacher)), teacher_loss_mask=teacher)
        )
    expected = [index for index, mask in enumerate(masks) for answer in mask[1:] if answer]
    batch = collate(documents)
    assert batch.document_index.tolist() == batch.for_teacher().document_index.tolist() == expected
    kept = torch.tensor([n for n in range(len(expected)) if random.random() < 0.5], dtype=torch.int64)
    batch.positions, batch.labels, batch.rows = batch.positions[kept], batch.labels[kept], batch.rows[kept]
    expected = [expected[n] for n in kept]
    assert batch.document_index.tolist() == batch.for_teacher().document_index.tolist() == expected


def test_the_document_index_is_computed_on_the_batchs_device():
    batch = collate([with_mask(range(4), [0, 0, 1, 1])] * 2).to("meta")  # a meta tensor cannot be read by the host
    assert batch.document_index.device.type == "meta"
    assert batch.document_index.shape == (4,)

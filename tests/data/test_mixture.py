"""Mixtures: each epoch has the shares of the weights, and all rows of a source appear equally often."""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data import BatchSampler, check_local_sources, load_corpus, load_unvalidated_corpus
from neoplug.data.mixture import Mixture, epoch_rows
from neoplug.errors import RecipeError

SIZES = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1)


@settings(deadline=None)
@given(SIZES)
def test_an_epoch_has_the_most_rows_in_the_given_shares_without_a_repeated_row(sizes):
    rows = {name: size for name, (size, _) in sizes.items()}
    weights = {name: weight / 10 for name, (_, weight) in sizes.items()}
    in_epoch = epoch_rows(rows, weights)
    longest = min(Fraction(rows[name], weight) for name, (_, weight) in sizes.items())  # in units of the weights
    assert all(in_epoch[name] <= rows[name] for name in rows)
    assert all(in_epoch[name] == max(1, int(weight * longest)) for name, (_, weight) in sizes.items())
    assert any(in_epoch[name] == rows[name] for name in rows)


@settings(deadline=None)
@given(SIZES, st.integers(0, 5), st.integers(1, 9))
def test_every_row_of_a_source_appears_equally_often(sizes, seed, epochs):
    rows = {name: size for name, (size, _) in sizes.items()}
    in_epoch = epoch_rows(rows, {name: weight for name, (_, weight) in sizes.items()})
    mixture = Mixture(tuple(rows), tuple(rows.values()), tuple(in_epoch.values()))
    edges = np.cumsum([0, *rows.values()])
    rows_of_epochs = [mixture.epoch(seed, epoch).tolist() for epoch in range(epochs)]
    for rows_of_epoch in rows_of_epochs:
        counts = np.histogram(rows_of_epoch, edges)[0]
        assert counts.tolist() == list(in_epoch.values())
    times = Counter(row for rows_of_epoch in rows_of_epochs for row in rows_of_epoch)
    for first, last in pairwise(edges):
        of_source = [times[row] for row in range(first, last)]
        assert max(of_source) - min(of_source) <= 1


def test_the_sampler_takes_its_rows_from_the_mixture():
    mixture = Mixture(("a", "b"), (6, 30), (6, 6))
    sampler = BatchSampler(12, 2, 1, 2, seed=3, mixture=mixture)
    assert sampler.steps_per_epoch == 3
    for epoch in range(2):
        steps = [sampler.micro_batches(3 * epoch + step, rank) for step in range(3) for rank in range(2)]
        assert sorted(row for step in steps for batch in step for row in batch) == sorted(mixture.epoch(3, epoch))
    assert mixture.epoch(3, 0).tolist() != mixture.epoch(4, 0).tolist()


@pytest.fixture
def files(tmp_path):
    """Return a file of 30 questions, one of 40 texts, and one of the first 20 of these texts and an empty one."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    texts = [{"body": f"prose {n} " + "and more " * (n % 9)} for n in range(40)]
    return {
        "chat": write("chat.jsonl", [{"prompt": f"question {n}", "completion": f" answer {n}"} for n in range(30)]),
        "prose": write("prose.jsonl", texts),
        "twins": write("twins.jsonl", [*texts[:20], {"body": ""}]),
    }


def several(files, held_out=4, **weights):
    from neoplug.recipe import Data

    columns = {"chat": {}, "prose": {"text": "body"}, "twins": {"text": "body"}}
    sources = {name: {"source": files[name], "columns": columns[name], "weight": w} for name, w in weights.items()}
    return Data(sources=sources, max_length=64, held_out=held_out)


def test_a_packed_row_has_documents_of_one_source(files, tiny_tokenizer):
    data = several(files, prose=1, chat=3)
    assert check_local_sources(data) == []
    corpus = load_corpus(data, tiny_tokenizer)
    read = corpus.report.read
    assert list(read) == ["chat", "prose"]
    assert [r.rows for r in read.values()] == [30, 40]
    assert corpus.report.held_out.rows == 8
    source_names = [
        {corpus.report.row_label(document.row).partition(" of ")[2] for document in row} for row in corpus.rows
    ]
    assert source_names == [{"chat"}] * read["chat"].training_rows + [{"prose"}] * read["prose"].training_rows
    document = corpus.rows[-1][0]
    number = int(corpus.report.row_label(document.row).partition(" ")[0])
    assert tiny_tokenizer.decode(document.input_ids).startswith(f"prose {number} and")
    assert corpus.mixture.epoch_rows == (read["chat"].training_rows, read["prose"].epoch_rows)
    assert read["prose"].epoch_rows == read["chat"].training_rows // 3
    assert f"of {read['prose'].training_rows} of prose" in corpus.report.lines()[-1].replace("the ", "")
    assert read["prose"].tokens + read["chat"].tokens == corpus.report.train.tokens


def test_other_weights_use_the_cached_tokens(files, tiny_tokenizer, monkeypatch):
    from neoplug.data.encode.row_encoder import RowEncoder

    first = load_corpus(several(files, prose=1, chat=3), tiny_tokenizer)
    monkeypatch.setattr(RowEncoder, "encode", lambda *_, **__: pytest.fail("rows were tokenised again"))
    other = load_corpus(several(files, prose=0.2, chat=0.1), tiny_tokenizer)
    assert other.fingerprint == first.fingerprint
    assert other.mixture != first.mixture


def test_a_row_that_one_source_holds_out_is_not_trained_on_from_another(files, tiny_tokenizer):
    corpus = load_unvalidated_corpus(several(files, prose=1, twins=1, held_out=3), tiny_tokenizer)
    trained = {tiny_tokenizer.decode(document.input_ids) for row in corpus.rows for document in row}
    kept = {tiny_tokenizer.decode(document.input_ids) for document in corpus.held_out}
    assert not trained & kept
    assert len(kept) >= 3
    assert corpus.report.dropped["empty text in twins"].first == [20]


def test_errors_name_the_source(files, tiny_tokenizer, tmp_path):
    data = several(files, prose=1, chat=1)
    data.sources["prose"].columns.clear()
    (problem,) = check_local_sources(data)
    assert problem.path == ("data", "sources", "prose", "source")
    assert problem.what.endswith("in prose")
    data.sources["prose"].columns["prompt"] = "body"  # only one of the two columns of its kind
    (problem,) = check_local_sources(data)
    assert problem.path == ("data", "sources", "prose", "columns")
    with pytest.raises(RecipeError, match="leaves no row to train on in chat"):
        load_corpus(several(files, prose=1, chat=1, held_out=30), tiny_tokenizer)

"""Label noise: frequency, uniform replacements, no change but of labels, reproducible from the generator."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from neoplug.data import BatchSampler
from neoplug.data.batch import Document, collate
from neoplug.registry import Plugins
from neoplug.training.batch_source import BatchSource
from neoplug_treatments.label_noise import LabelNoise


def batch_of(tokens):
    document = Document(np.asarray([1, *tokens]), np.ones(len(tokens) + 1, dtype=bool), row=0)
    return collate([document])


def noisy(tokens, probability, seed=0):
    batch = batch_of(tokens)
    LabelNoise(probability).edit_batch(batch, torch.Generator().manual_seed(seed))
    return batch


TOKENS = np.random.default_rng(0).choice([3, 5, 8, 300], p=[0.7, 0.1, 0.1, 0.1], size=20_000)


def test_labels_are_replaced_with_the_given_probability():
    changed = int((noisy(TOKENS, 0.2).labels.numpy() != TOKENS).sum())
    assert binomtest(changed, len(TOKENS), 0.2).pvalue > 1e-3


def test_replacements_are_uniform_over_the_other_tokens():
    labels = noisy(TOKENS, 1.0).labels.numpy()
    assert not (labels == TOKENS).any()
    of_threes = labels[TOKENS == 3]
    assert chisquare([(of_threes == token).sum() for token in (5, 8, 300)]).pvalue > 1e-3


def test_only_labels_change():
    clean, batch = batch_of(TOKENS), noisy(TOKENS, 0.5)
    for name in ("input_ids", "positions", "rows"):
        assert torch.equal(getattr(clean, name), getattr(batch, name))
    assert (batch.labels.shape, batch.labels.dtype) == (clean.labels.shape, clean.labels.dtype)


def test_the_same_generator_gives_the_same_labels():
    assert torch.equal(noisy(TOKENS, 0.5, seed=1).labels, noisy(TOKENS, 0.5, seed=1).labels)
    assert not torch.equal(noisy(TOKENS, 0.5, seed=1).labels, noisy(TOKENS, 0.5, seed=2).labels)


def labels_by_row(world, batch_size, accumulation):
    """Return row -> labels after noise, in one step of 12 rows."""
    tokens = np.random.default_rng(1).choice(9, size=(12, 20))
    rows = [[Document(ids, np.ones(20, bool), row)] for row, ids in enumerate(tokens)]
    corpus = SimpleNamespace(rows=rows, longest={"student": 20})
    sampler = BatchSampler(12, batch_size, accumulation, world, seed=0)
    plugins = Plugins({"treatments": {"label_noise": LabelNoise(0.5)}})
    sources = [BatchSource(corpus=corpus, sampler=sampler, plugins=plugins, seed=0, rank=rank) for rank in range(world)]
    batches = [batch for source in sources for batch, _ in source.micro_batches(0, 0.0)]
    labels, numbers = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "rows"))
    clean = {row: ids[1:].tolist() for row, ids in enumerate(tokens)}
    noisy = {row: labels[numbers == row].tolist() for row in range(12)}
    assert all(clean[row] != noisy[row] for row in range(12))
    return noisy


@pytest.mark.parametrize("shape", [(2, 3, 2), (3, 1, 4), (1, 1, 12), (4, 3, 1)])
def test_ranks_and_micro_batches_do_not_change_the_noise_of_a_row(shape):
    assert labels_by_row(*shape) == labels_by_row(1, 12, 1)


@pytest.mark.parametrize(("tokens", "probability"), [([7, 7, 7], 1.0), ([], 1.0), ([3, 4, 5], 0.0)])
def test_labels_stay_with_one_distinct_token_or_probability_0(tokens, probability):
    assert noisy(tokens, probability).labels.tolist() == tokens


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(probability):
    with pytest.raises(ValueError, match=r"^probability is"):
        LabelNoise(probability)

"""Label noise: how often, uniformly among which tokens, only the labels, the same from the same generator."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from neoplug.data.batch import Document, collate
from neoplug_treatments.label_noise import LabelNoise


def batch_of(tokens):
    document = Document(np.asarray([1, *tokens]), np.ones(len(tokens) + 1, dtype=bool), row=0)
    return collate([document])


def noisy(tokens, probability, seed=0):
    batch = batch_of(tokens)
    LabelNoise(probability).edit_batch(batch, torch.Generator().manual_seed(seed))
    return batch


TOKENS = np.random.default_rng(0).choice([3, 5, 8, 300], p=[0.7, 0.1, 0.1, 0.1], size=20_000)


def test_it_replaces_as_often_as_asked():
    changed = int((noisy(TOKENS, 0.2).labels.numpy() != TOKENS).sum())
    assert binomtest(changed, len(TOKENS), 0.2).pvalue > 1e-3


def test_it_draws_each_other_token_alike():
    labels = noisy(TOKENS, 1.0).labels.numpy()
    assert not (labels == TOKENS).any()
    of_threes = labels[TOKENS == 3]
    assert chisquare([(of_threes == token).sum() for token in (5, 8, 300)]).pvalue > 1e-3


def test_only_labels_change():
    clean, batch = batch_of(TOKENS), noisy(TOKENS, 0.5)
    for name in ("input_ids", "positions", "rows"):
        assert torch.equal(getattr(clean, name), getattr(batch, name))
    assert (batch.labels.shape, batch.labels.dtype) == (clean.labels.shape, clean.labels.dtype)


def test_the_generator_decides():
    assert torch.equal(noisy(TOKENS, 0.5, seed=1).labels, noisy(TOKENS, 0.5, seed=1).labels)
    assert not torch.equal(noisy(TOKENS, 0.5, seed=1).labels, noisy(TOKENS, 0.5, seed=2).labels)


@pytest.mark.parametrize(("tokens", "probability"), [([7, 7, 7], 1.0), ([], 1.0), ([3, 4, 5], 0.0)])
def test_where_nothing_can_be_drawn_or_none_is_asked_for_all_stays(tokens, probability):
    assert noisy(tokens, probability).labels.tolist() == tokens


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"^probability is"):
        LabelNoise(probability)

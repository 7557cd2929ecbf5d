"""Label noise: frequency, uniform replacements, no change but of labels, reproducible from the generator."""

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


@pytest.mark.parametrize(("tokens", "probability"), [([7, 7, 7], 1.0), ([], 1.0), ([3, 4, 5], 0.0)])
def test_labels_stay_with_one_distinct_token_or_probability_0(tokens, probability):
    assert noisy(tokens, probability).labels.tolist() == tokens


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(probability):
    with pytest.raises(ValueError, match=r"^probability is"):
        LabelNoise(probability)

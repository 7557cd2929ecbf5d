"""The calibration probe against a naive numpy loop over tokens and bins."""

import numpy as np
import pytest
import torch

from neoplug_probes.calibration import Calibration


def naive(probabilities, labels, bins):
    confidence, guess = probabilities.max(-1), probabilities.argmax(-1)
    error = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs((guess == labels)[inside].mean() - confidence[inside].mean())
    brier = np.mean(
        [sum((p[k] - (k == y)) ** 2 for k in range(len(p))) for p, y in zip(probabilities, labels, strict=True)]
    )
    return error, brier


def predict(model, batch):
    """Replace the core's `predict`: a `model` is a scale of logits, a batch is (logits, labels), in two chunks."""
    logits, labels = batch
    for rows in (slice(0, 5), slice(5, None)):
        yield (model * logits[rows]).log_softmax(-1), labels[rows]


def some_batches(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(n, 9, generator=rng), torch.randint(9, (n,), generator=rng)) for n in (40, 33, 5)]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_metrics_equal_those_of_a_naive_loop(bins):
    batches = some_batches()
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for scale in (1.0, 0.3):
        measured = Calibration(bins=bins).on_evaluate(scale, batches, predict)
        probabilities = (scale * logits).double().softmax(-1).numpy()
        error, brier = naive(probabilities, labels.numpy(), bins)
        assert measured["ece"] == pytest.approx(error, abs=1e-6)
        assert measured["brier"] == pytest.approx(brier, abs=1e-6)


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=rng)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]
    fair, bold = (Calibration().on_evaluate(scale, [(logits, labels)], predict) for scale in (1.0, 5.0))
    assert fair["ece"] < 0.01 < 0.2 < bold["ece"]
    assert fair["brier"] < bold["brier"]


def test_a_certain_model():
    logits = torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]])
    found = Calibration().on_evaluate(1.0, [(logits, torch.tensor([1, 1]))], predict)
    assert found == {"ece": pytest.approx(0.5), "brier": pytest.approx(1.0)}


def test_without_answer_tokens_the_metrics_are_none():
    assert Calibration().on_evaluate(1.0, [], predict) == {"ece": None, "brier": None}


def test_bins_below_one_are_refused():
    with pytest.raises(ValueError, match=r"^bins is 0"):
        Calibration(bins=0)

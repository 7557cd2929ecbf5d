"""Every installed loss passes the conformance kit for losses."""

import pytest
import torch
from hypothesis import Phase, given, settings

from neoplug.registry import installed
from neoplug.testing import LOSS, call, check_loss, examples


@pytest.fixture(scope="module")
def drawn():
    """Return a few examples, shared by all losses, because drawing takes longer than the checks."""
    found = []

    @settings(max_examples=8, derandomize=True, database=None, phases=[Phase.generate])
    @given(examples())
    def draw(example):
        found.append(example)

    draw()
    return found


def test_properties_of_a_loss(loss):
    check_loss(loss, max_examples=20)


@pytest.mark.slow
def test_properties_hold_for_other_options(variant, drawn):
    exempt = LOSS.exemptions(variant)
    for name, check in LOSS.quick.items():
        for example in drawn if name not in exempt else ():
            check(variant, example)


def test_a_loss_reads_no_number_from_the_device(variant):
    """Tensors on the meta device have no values: reading one, which stalls a GPU, raises an error."""
    log_probabilities = torch.empty(4, 50, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    arguments = {"student": log_probabilities, "teacher": log_probabilities, "labels": labels, "progress": 0.5}
    hooks = [getattr(variant, name) for name in ("token_loss", "token_gradient") if hasattr(variant, name)]
    assert all(call(hook, arguments) is not None for hook in hooks)


# Defaults of the papers, or of their code where a paper gives none; arXiv numbers are in the losses' files.
DEFAULTS = {
    "adaptive_kl": {"mu": 0.5},
    "alpha_beta": {"alpha": 0.5, "beta": 0.5},
    "concrete_score": {"w1": "student", "w2": "student"},
    "cross_entropy": {"label_smoothing": 0.0},
    "decoupled_kl": {"alpha": 1.0, "beta": 0.5},
    "distillm2": {"alpha": 0.1, "gradual_beta": False},
    "forward_kl": {"omit_teacher_entropy": False},
    "jeffreys": {"forward_share": 0.5},
    "jsd": {"beta": 0.5, "swap_beta": False},
    "skew_forward_kl": {"alpha": 0.1},
    "skew_reverse_kl": {"alpha": 0.1},
    "taid": {"t_start": 0.4, "t_end": 1.0, "alpha": 5e-4, "beta": 0.99},
}


def test_defaults_are_those_of_the_papers():
    ours = {entry.name: entry.load()() for entry in installed() if entry.name in DEFAULTS}
    assert {name: {key: getattr(ours[name], key) for key in DEFAULTS[name]} for name in ours} == DEFAULTS
    assert {loss.temperature for loss in ours.values() if hasattr(loss, "temperature")} == {1.0}


def test_the_catalogue_is_not_empty():
    assert {"cross_entropy", "forward_kl", "reverse_kl", "jsd"} <= {entry.name for entry in installed()}

"""Every installed loss holds what losses hold, by the kit that strangers use."""

import pytest
import torch
from hypothesis import Phase, given, settings

from neoplug.registry import installed
from neoplug.testing import LOSS, call, check_loss, examples


@pytest.fixture(scope="module")
def drawn():
    """Return a few examples, the same for all: drawing them costs more than trying them."""
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


def test_a_loss_never_waits_for_a_number(variant):
    """Tensors on the meta device have no numbers: whoever asks for one, and would stall a GPU, fails."""
    log_probabilities = torch.empty(4, 50, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    arguments = {"student": log_probabilities, "teacher": log_probabilities, "labels": labels, "progress": 0.5}
    hooks = [getattr(variant, name) for name in ("token_loss", "token_gradient") if hasattr(variant, name)]
    assert all(call(hook, arguments) is not None for hook in hooks)


def test_the_shelf_is_not_empty():
    assert {"cross_entropy", "forward_kl", "reverse_kl", "jsd"} <= {entry.name for entry in installed()}

"""Every installed loss holds what losses hold, by the kit that strangers use."""

import torch

from neoplug.registry import installed
from neoplug.testing import call, check_loss


def test_properties_of_a_loss(loss):
    check_loss(loss)


def test_a_loss_never_waits_for_a_number(loss):
    """Tensors on the meta device have no numbers: whoever asks for one, and would stall a GPU, fails."""
    log_probabilities = torch.empty(4, 50, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    arguments = {"student": log_probabilities, "teacher": log_probabilities, "labels": labels, "progress": 0.5}
    hooks = [getattr(loss, name) for name in ("token_loss", "token_gradient") if hasattr(loss, name)]
    assert all(call(hook, arguments) is not None for hook in hooks)


def test_the_shelf_is_not_empty():
    assert {"cross_entropy", "forward_kl", "reverse_kl", "jsd"} <= {entry.name for entry in installed()}

"""Every installed loss holds what losses hold, by the kit that strangers use."""

from neoplug.registry import installed
from neoplug.testing import check_loss

NOT_A_DIVERGENCE = {"CrossEntropy"}  # of the data, not of the teacher


def test_properties_of_a_loss(loss):
    check_loss(loss, divergence=type(loss).__name__ not in NOT_A_DIVERGENCE)


def test_the_shelf_is_not_empty():
    assert {"cross_entropy", "forward_kl", "reverse_kl", "jsd"} <= {entry.name for entry in installed()}

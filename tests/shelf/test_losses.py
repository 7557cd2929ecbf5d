"""Every installed loss holds what losses hold, by the kit that strangers use."""

from neoplug.registry import installed
from neoplug.testing import check_loss


def test_properties_of_a_loss(loss):
    check_loss(loss)


def test_the_shelf_is_not_empty():
    assert {"cross_entropy", "forward_kl", "reverse_kl", "jsd"} <= {entry.name for entry in installed()}

"""Every property of optimizers holds for every installed one."""

import pytest

from neoplug.testing import OPTIMIZER


@pytest.mark.parametrize("name", OPTIMIZER.properties)
def test_a_property_of_optimizers(name, optimizer):
    OPTIMIZER.properties[name](optimizer)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "muon", "adamw", "sgd"])
def test_the_optimizer_is_installed(name):
    from neoplug.registry import installed

    assert name in {entry.name for entry in installed()}

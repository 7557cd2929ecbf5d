"""Hands out every installed `loss`, `adapter` and `optimizer`: whoever adds a file is tested here."""

from dataclasses import fields

import pytest

from neoplug.errors import RecipeError
from neoplug.registry import answered, installed


def answering(hook):
    """Yield (name, class) of the installed plugins with a hook. Broken ones answer for themselves elsewhere."""
    for entry in installed():
        try:
            plugin = entry.load()
        except RecipeError:
            continue
        if hook in answered(plugin):
            yield entry.name, plugin


def losses():
    for name, plugin in answering("token_loss"):
        yield pytest.param(plugin(), id=name)
        if any(field.name == "temperature" for field in fields(plugin)):
            yield pytest.param(plugin(temperature=2.5), id=f"{name}-hot")


def adapters():
    for name, plugin in answering("add_adapter"):
        yield pytest.param(plugin(), id=name)


def optimizers():
    for name, plugin in answering("make_optimizer"):
        yield pytest.param(plugin(), id=name)


def pytest_generate_tests(metafunc):
    for argument, plugins in (("loss", losses), ("adapter", adapters), ("optimizer", optimizers)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(plugins()))

"""Hands out every installed `loss`, `adapter`, `optimizer` and `token_weight`: whoever adds a file is tested here."""

from contextlib import suppress
from dataclasses import fields
from typing import get_args, get_type_hints

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


def variants():
    """Yield each loss as it is, and with another value of one of its options: whatever its constructor takes."""
    for name, plugin in answering("token_loss"):
        yield pytest.param(plugin(), id=name)
        hints = get_type_hints(plugin)
        for field in fields(plugin):
            for value in others(hints[field.name], field.default):
                with suppress(ValueError):
                    yield pytest.param(plugin(**{field.name: value}), id=f"{name}-{field.name}={value}")


def others(hint, default):
    """Return values of an option's type that are not its default."""
    values = {bool: (True, False), float: (0.3, 2.5), int: (1, 3)}.get(hint, get_args(hint))
    return [value for value in values if value != default and not isinstance(value, type)]


def adapters():
    for name, plugin in answering("add_adapter"):
        yield pytest.param(plugin(), id=name)


def optimizers():
    for name, plugin in answering("make_optimizer"):
        yield pytest.param(plugin(), id=name)


def token_weights():
    """Yield each with either of its directions, which an option `more_on` names."""
    for name, plugin in answering("token_weight"):
        option = get_type_hints(plugin).get("more_on")
        for way in get_args(option) or (None,):
            yield pytest.param(plugin(**({"more_on": way} if way else {})), id=f"{name}-{way}")


def pytest_generate_tests(metafunc):
    for argument, plugins in (
        ("loss", losses),
        ("variant", variants),
        ("adapter", adapters),
        ("optimizer", optimizers),
        ("token_weight", token_weights),
    ):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(plugins()))

"""Other values of a plugin's options, by their types."""

import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import UnionType
from typing import Any

from neoplug.errors import RecipeError


def each_option(plugin: Any, make: Callable[[Any], Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (option, value, what `make` returns of the plugin with it) for the first value that is accepted.

    An option of which no value is tried or accepted is left out. An error of `make` that does not name the option is
    raised.
    """
    for option in fields(plugin):
        for value, made in accepted(plugin, option.name, make):
            yield option.name, value, made
            break


def accepted(plugin: Any, option: str, make: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Yield (value, what `make` returns of the plugin with it) for each other value of an option that is accepted.

    An error of `make` that does not name the option is raised.
    """
    for value in _others(typing.get_type_hints(type(plugin))[option], getattr(plugin, option)):
        try:
            made = make(replace(plugin, **{option: value}))
        except (ValueError, RecipeError) as error:
            paths = [problem.path for problem in getattr(error, "problems", ())]
            if option not in str(error) and not any(option in path for path in paths):
                raise
        else:
            yield value, made


def _others(hint: Any, value: Any) -> Iterator[Any]:
    """Yield values of an option's type other than its present one."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        for kind in typing.get_args(hint):
            yield from _others(kind, value)
    elif typing.get_origin(hint) is typing.Literal:
        yield from (choice for choice in typing.get_args(hint) if choice != value)
    elif hint is bool:
        yield not value
    elif hint is int:
        yield from (2 * (value or 2), 2, 1)
    elif hint is float:
        yield from ((value or 1) / 2, 0.25)
    elif typing.get_origin(hint) is dict:
        yield {"q_proj": 4}
    elif typing.get_origin(hint) is list and str in typing.get_args(hint):
        yield ["q_proj"]

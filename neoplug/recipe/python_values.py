"""Serialization of plain Python values (maps, lists, text, numbers, booleans, None, paths) as a recipe's YAML."""

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import yaml

from neoplug.errors import Problem, RecipeError
from neoplug.recipe.limits import MAX_DEPTH

_YAML = "tag:yaml.org,2002:"


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return values as YAML. Of other types only a tag with the type's name is written, which the reader refuses.

    Raises RecipeError where they are nested too deeply.
    """
    try:
        return str(yaml.dump(values, Dumper=_Dumper, width=float("inf"), allow_unicode=True, sort_keys=False))
    except RecursionError:
        raise RecipeError([Problem(f"more than {MAX_DEPTH} levels deep")]) from None


def _represent(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    if isinstance(value, Mapping):
        return dumper.represent_dict(dict(value))
    if isinstance(value, list | tuple):
        return dumper.represent_list(value)
    plain = str(value) if isinstance(value, Path) else _plain_scalar(value)
    if plain is None or isinstance(plain, bool):
        return dumper.represent_none(plain) if plain is None else dumper.represent_bool(plain)
    if isinstance(plain, float):
        return dumper.represent_float(plain)
    if isinstance(plain, int):  # Python does not write more than 4,300 decimal digits
        return dumper.represent_scalar(f"{_YAML}int", str(plain) if plain.bit_length() < 10_000 else hex(abs(plain)))
    if isinstance(plain, str) and plain == plain.encode(errors="ignore").decode():
        return dumper.represent_scalar(f"{_YAML}str", plain, style=None if plain.isidentifier() else '"')
    return dumper.represent_scalar("!surrogates" if isinstance(plain, str) else f"!{type(value).__name__}", "")


class _Dumper(yaml.SafeDumper):
    yaml_representers: ClassVar[dict[Any, Any]] = {}
    yaml_multi_representers: ClassVar[dict[Any, Any]] = {object: _represent}


def _plain_scalar(value: Any) -> Any:
    """Return the Python scalar that equals a numpy scalar or other number exactly; else `value` itself."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, Real) and float(value) == value else value
    except OverflowError:
        return value

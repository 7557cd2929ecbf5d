"""Finds another plugin in a section of a recipe, whether by name, tag or package."""

from collections.abc import Iterable

QUANTISERS = ("nf4", "fp4", "int8")


def key_of(plugin: str, section: Iterable[str]) -> str | None:
    """Return the key of `plugin` in a section, as `lora`, `lora@tag` or `package:lora@tag`; None if it is missing."""
    return next((key for key in section if key.partition("@")[0].rpartition(":")[2] == plugin), None)


def quantiser(section: Iterable[str]) -> str | None:
    """Return the key of a plugin in a `load` section that quantises weights to integers, which take no gradient."""
    section = list(section)
    return next((key for plugin in QUANTISERS if (key := key_of(plugin, section))), None)

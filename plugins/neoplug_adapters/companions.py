"""Finding another plugin in a section of a recipe, however it is written there."""

from collections.abc import Iterable

QUANTISERS = ("nf4", "fp4", "int8")


def key_of(plugin: str, section: Iterable[str]) -> str | None:
    """Return the key of `plugin` in a section: `lora`, `lora@tag`, `package:lora@tag`; else None."""
    return next((key for key in section if key.partition("@")[0].rpartition(":")[2] == plugin), None)


def quantiser(section: Iterable[str]) -> str | None:
    """Return the key of a plugin in a `load` section that makes weights integers, which take no gradient; else None."""
    section = list(section)
    return next((key for plugin in QUANTISERS if (key := key_of(plugin, section))), None)

"""Finding another plugin in a section of a recipe, however it is written there."""

from collections.abc import Iterable


def key_of(plugin: str, section: Iterable[str]) -> str | None:
    """Return the key under which `plugin` stands in a section: `lora`, `lora@tag`, `package:lora@tag`; else None."""
    return next((key for key in section if key.partition("@")[0].rpartition(":")[2] == plugin), None)

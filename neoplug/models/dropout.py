"""The dropout that a model's own configuration asks for: off while a student learns, back where it is saved.

A teacher's distribution is a sharper target than hard labels, and a student that is measured, compared and merged
without its dropout is the one whose loss is to be trained. What an adapter drops is the adapter's own option.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def switch_off(config: "PretrainedConfig") -> None:
    """Set every probability of a dropout (`attn_pdrop`, `hidden_dropout`, `layerdrop` and their like) to 0."""
    for part in _parts(config):
        for name in _probabilities(part):
            setattr(part, name, 0.0)


def put_back(config: "PretrainedConfig", original: "PretrainedConfig") -> None:
    """Give `config` the dropouts of `original`, the configuration that it came from."""
    for part, source in zip(_parts(config), _parts(original), strict=True):
        for name in _probabilities(source):
            setattr(part, name, getattr(source, name))


def _parts(config: "PretrainedConfig") -> Iterator["PretrainedConfig"]:
    yield config
    if config.get_text_config() is not config:
        yield config.get_text_config()


def _probabilities(config: "PretrainedConfig") -> list[str]:
    return [name for name, value in vars(config).items() if "drop" in name and type(value) is float and 0 < value <= 1]

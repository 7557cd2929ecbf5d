"""Dropout set by a model's configuration: switched off for training, restored in the saved configuration.

The teacher and the student are evaluated, compared and merged without dropout, so the training loss is computed without
it too. An adapter's dropout is an option of the adapter and not changed here.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def switch_off(config: "PretrainedConfig") -> None:
    """Set every dropout probability of a configuration (`attn_pdrop`, `hidden_dropout`, `layerdrop`, ...) to 0."""
    for part in _parts(config):
        for name in _probabilities(part):
            setattr(part, name, 0.0)


def restore(config: "PretrainedConfig", original: "PretrainedConfig") -> None:
    """Copy the dropout probabilities of `original`, the configuration that `config` was made from, into `config`."""
    for part, source in zip(_parts(config), _parts(original), strict=True):
        for name in _probabilities(source):
            setattr(part, name, getattr(source, name))


def _parts(config: "PretrainedConfig") -> Iterator["PretrainedConfig"]:
    yield config
    if config.get_text_config() is not config:
        yield config.get_text_config()


def _probabilities(config: "PretrainedConfig") -> list[str]:
    return [name for name, value in vars(config).items() if "drop" in name and type(value) is float and 0 < value <= 1]

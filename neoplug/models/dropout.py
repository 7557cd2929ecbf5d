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
    for part in _with_text_config(config):
        for name in _dropout_names(part):
            setattr(part, name, 0.0)


def restore(config: "PretrainedConfig", original: "PretrainedConfig") -> None:
    """Copy the dropout probabilities of `original`, the configuration that `config` was made from, into `config`."""
    for part, source in zip(_with_text_config(config), _with_text_config(original), strict=True):
        for name in _dropout_names(source):
            setattr(part, name, getattr(source, name))


def _with_text_config(config: "PretrainedConfig") -> Iterator["PretrainedConfig"]:
    """Yield a configuration, and the configuration of its text model where that is another one."""
    yield config
    if config.get_text_config() is not config:
        yield config.get_text_config()


def _dropout_names(config: "PretrainedConfig") -> list[str]:
    """Return the names of a configuration's dropout probabilities that are not 0."""
    return [name for name, value in vars(config).items() if "drop" in name and type(value) is float and 0 < value <= 1]

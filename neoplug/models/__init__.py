"""Models: where they come from, how they are loaded, adapters they start with, students prepared once and stored."""

from neoplug.models.stored_adapter import (
    cache_by_its_name,
    locate_adapter,
    put_into,
    put_on,
    refuse_other_adapter,
    refuse_unfit,
    tell_other_base,
    virtual_tokens,
)
from neoplug.models.load import (
    DTYPES,
    default_dtype,
    dtype_named,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    load_weights,
    plugin_kwargs,
    reread,
    skeleton,
)
from neoplug.models.reference import Located
from neoplug.models.resolve import locate
from neoplug.models.prepared import prepare

__all__ = [
    "DTYPES",
    "Located",
    "cache_by_its_name",
    "default_dtype",
    "dtype_named",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "load_weights",
    "locate",
    "locate_adapter",
    "plugin_kwargs",
    "prepare",
    "put_into",
    "put_on",
    "refuse_other_adapter",
    "refuse_unfit",
    "reread",
    "skeleton",
    "tell_other_base",
    "virtual_tokens",
]

"""Models: resolved from their names, loaded, verified; the output head as a function, and stored adapters.

Imported by `teachers` and what lies above it. Does not belong here: the teacher's signal (`teachers`), adapters under
training (plugins), merged or exported models (`export`).
"""

from neoplug.environment.dtypes import DTYPES, default_dtype, dtype_named
from neoplug.models.load import (
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    load_weights,
    plugin_kwargs,
    reread,
    skeleton,
)
from neoplug.models.prepared import prepare
from neoplug.models.reference import ResolvedModel
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import (
    cache_by_its_name,
    locate_adapter,
    put_into,
    put_on,
    tell_other_base,
    validate_adapter_fits,
    validate_same_adapter,
    virtual_tokens,
)

__all__ = [
    "DTYPES",
    "ResolvedModel",
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
    "reread",
    "skeleton",
    "tell_other_base",
    "validate_adapter_fits",
    "validate_same_adapter",
    "virtual_tokens",
]

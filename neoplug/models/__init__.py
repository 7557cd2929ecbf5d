"""Models: where they come from, how they are loaded, and the student that is prepared once and stored."""

from neoplug.models.load import (
    DTYPES,
    default_dtype,
    dtype_named,
    load_config,
    load_model,
    load_tokenizer,
    load_weights,
    skeleton,
)
from neoplug.models.located import Located
from neoplug.models.sources import locate
from neoplug.models.students import prepare

__all__ = [
    "DTYPES",
    "Located",
    "default_dtype",
    "dtype_named",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "locate",
    "prepare",
    "skeleton",
]

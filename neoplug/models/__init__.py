"""Models: resolution of their names, loading and verification; the output head as a function; stored adapters.

Imported by `teachers` and the layers above it. Does not belong here: the teacher's signal (`teachers`), adapters under
training (plugins), merged or exported models (`export`).
"""

import warnings
from importlib import import_module
from typing import Any

# Names that could be imported from here before they moved -> (their module, their name there).
MOVED = {
    "DTYPES": ("neoplug.environment.dtypes", "DTYPES"),
    "Located": ("neoplug.models.reference", "ResolvedModel"),
    "cache_by_its_name": ("neoplug", "rename_cache_argument"),
    "default_dtype": ("neoplug.environment.dtypes", "default_dtype"),
    "dtype_named": ("neoplug", "resolve_dtype"),
    "load_config": ("neoplug.models.load", "load_config"),
    "load_model": ("neoplug.models.load", "load_model"),
    "load_skeleton": ("neoplug.models.load", "load_meta_model"),
    "load_tokenizer": ("neoplug.models.load", "load_tokenizer"),
    "load_weights": ("neoplug.models.load", "load_weights"),
    "locate": ("neoplug.models.resolve", "locate"),
    "locate_adapter": ("neoplug.models.stored_adapter", "locate_adapter"),
    "plugin_kwargs": ("neoplug.models.load", "plugin_kwargs"),
    "prepare": ("neoplug.models.prepared", "prepare"),
    "put_into": ("neoplug.models.stored_adapter", "load_adapter_weights"),
    "put_on": ("neoplug.models.stored_adapter", "load_adapter"),
    "refuse_other_adapter": ("neoplug.models.stored_adapter", "validate_same_adapter"),
    "refuse_unfit": ("neoplug.models.stored_adapter", "validate_adapter_fits"),
    "reread": ("neoplug", "reload_config"),
    "skeleton": ("neoplug", "meta_model"),
    "tell_other_base": ("neoplug.models.stored_adapter", "warn_other_base"),
    "virtual_tokens": ("neoplug.models.stored_adapter", "virtual_tokens"),
}


def __getattr__(name: str) -> Any:
    """Return a name that moved, with a DeprecationWarning that names its new place."""
    if name not in MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, new_name = MOVED[name]
    new = f"{new_name} from {module}"
    warnings.warn(f"neoplug.models.{name} is deprecated: import {new}", DeprecationWarning, stacklevel=2)
    return getattr(import_module(module), new_name)

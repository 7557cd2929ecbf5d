"""Deprecated path: import `Divergence`, `Softened` and `log_mixture` from `neoplug`."""

import warnings
from typing import Any

import neoplug

MOVED = ("Divergence", "Softened", "log_mixture")


def __getattr__(name: str) -> Any:
    """Return what `neoplug` exports under this name, with a DeprecationWarning."""
    if name in MOVED:
        what = f"neoplug_losses.divergence.{name} is deprecated: import it from `neoplug`"
        warnings.warn(what, DeprecationWarning, stacklevel=2)
        return getattr(neoplug, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""neoplug distils language models with adapters: variants and losses are plugins, a run is a recipe."""

from typing import TYPE_CHECKING, Any

from neoplug.errors import Problem
from neoplug.hookspecs import hookimpl

if TYPE_CHECKING:
    from neoplug.runs.execute import run

__all__ = ["Problem", "__version__", "hookimpl", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`neoplug.run` arrives on first use: it brings torch, which a plugin's recipe check must not wait for."""
    if name == "run":
        from neoplug.runs.execute import run

        return run
    raise AttributeError(f"module 'neoplug' has no attribute {name!r}")

"""neoplug distils language models with adapters: variants and losses are plugins, a run is a recipe.

Everything that a third party may import is in `__all__` here or in `neoplug.testing`; other paths may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neoplug.errors import Problem, RecipeError, RunError, UsageError, did_you_mean
from neoplug.hookspecs import Role, hookimpl

if TYPE_CHECKING:
    from neoplug.data.batch import Batch, Document, collate
    from neoplug.environment.dtypes import dtype_named
    from neoplug.models.load import reread, skeleton
    from neoplug.models.quiet import quiet_peft
    from neoplug.models.stored_adapter import cache_by_its_name
    from neoplug.recipe.schema import Recipe
    from neoplug.runs.execute import run
    from neoplug.training.divergence import Divergence, Softened, log_mixture

__all__ = [
    "Batch",
    "Divergence",
    "Document",
    "Problem",
    "Recipe",
    "RecipeError",
    "Role",
    "RunError",
    "Softened",
    "UsageError",
    "__version__",
    "cache_by_its_name",
    "collate",
    "did_you_mean",
    "dtype_named",
    "hookimpl",
    "log_mixture",
    "quiet_peft",
    "reread",
    "run",
    "skeleton",
]
__version__ = "0.1.0"

# Imported on first use: these import torch, which a plugin's `check(recipe)` and the command line need not wait for.
_MODULES = {
    "Batch": "neoplug.data.batch",
    "Divergence": "neoplug.training.divergence",
    "Document": "neoplug.data.batch",
    "Recipe": "neoplug.recipe.schema",
    "Softened": "neoplug.training.divergence",
    "cache_by_its_name": "neoplug.models.stored_adapter",
    "collate": "neoplug.data.batch",
    "dtype_named": "neoplug.environment.dtypes",
    "log_mixture": "neoplug.training.divergence",
    "quiet_peft": "neoplug.models.quiet",
    "reread": "neoplug.models.load",
    "run": "neoplug.runs.execute",
    "skeleton": "neoplug.models.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'neoplug' has no attribute {name!r}")

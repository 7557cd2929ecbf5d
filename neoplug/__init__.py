"""neoplug distils language models with adapters: variants and losses are plugins, a run is a recipe.

Everything that a third party may import is in `__all__` here or in `neoplug.testing`; other paths may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neoplug.errors import OptionError, Problem, RecipeError, RunError, UsageError, did_you_mean
from neoplug.hookspecs import API_VERSION, Reads, Role, Source, hookimpl

if TYPE_CHECKING:
    from neoplug.data.batch import Batch, Document, collate
    from neoplug.environment.dtypes import resolve_dtype
    from neoplug.export.merge import export_model
    from neoplug.models.adaptable_weights import AdaptableWeight, adaptable_weights
    from neoplug.models.load import meta_model, reload_config
    from neoplug.models.quiet import quiet_peft
    from neoplug.models.stored_adapter import rename_cache_argument
    from neoplug.recipe.metric_checks import prefers_greater, ranking_problem
    from neoplug.recipe.schema import Recipe
    from neoplug.registry.adapter_traits import AdapterTraits
    from neoplug.registry.confinement import confined
    from neoplug.registry.options import CodePath
    from neoplug.runs.execute import run
    from neoplug.runs.remeasure import evaluate
    from neoplug.studies.execute import study
    from neoplug.teachers.base import SparseDistributions
    from neoplug.teachers.signals import EntriesSignal, StatesSignal
    from neoplug.training.divergence import Divergence, Softened, log_mixture
    from neoplug.training.formula import Formula

__all__ = [
    "API_VERSION",
    "AdaptableWeight",
    "AdapterTraits",
    "Batch",
    "CodePath",
    "Divergence",
    "Document",
    "EntriesSignal",
    "Formula",
    "OptionError",
    "Problem",
    "Reads",
    "Recipe",
    "RecipeError",
    "Role",
    "RunError",
    "Softened",
    "Source",
    "SparseDistributions",
    "StatesSignal",
    "UsageError",
    "__version__",
    "adaptable_weights",
    "collate",
    "confined",
    "did_you_mean",
    "evaluate",
    "export_model",
    "hookimpl",
    "log_mixture",
    "meta_model",
    "prefers_greater",
    "quiet_peft",
    "ranking_problem",
    "reload_config",
    "rename_cache_argument",
    "resolve_dtype",
    "run",
    "study",
]
__version__ = "0.1.0"

# Imported on first use: these import torch, which a plugin's `check(recipe)` and the command line need not wait for.
_MODULES = {
    "AdaptableWeight": "neoplug.models.adaptable_weights",
    "AdapterTraits": "neoplug.registry.adapter_traits",
    "Batch": "neoplug.data.batch",
    "CodePath": "neoplug.registry.options",
    "Divergence": "neoplug.training.divergence",
    "Document": "neoplug.data.batch",
    "EntriesSignal": "neoplug.teachers.signals",
    "Formula": "neoplug.training.formula",
    "Recipe": "neoplug.recipe.schema",
    "Softened": "neoplug.training.divergence",
    "SparseDistributions": "neoplug.teachers.base",
    "StatesSignal": "neoplug.teachers.signals",
    "adaptable_weights": "neoplug.models.adaptable_weights",
    "collate": "neoplug.data.batch",
    "confined": "neoplug.registry.confinement",
    "evaluate": "neoplug.runs.remeasure",
    "export_model": "neoplug.export.merge",
    "log_mixture": "neoplug.training.divergence",
    "meta_model": "neoplug.models.load",
    "prefers_greater": "neoplug.recipe.metric_checks",
    "quiet_peft": "neoplug.models.quiet",
    "ranking_problem": "neoplug.recipe.metric_checks",
    "reload_config": "neoplug.models.load",
    "rename_cache_argument": "neoplug.models.stored_adapter",
    "resolve_dtype": "neoplug.environment.dtypes",
    "run": "neoplug.runs.execute",
    "study": "neoplug.studies.execute",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'neoplug' has no attribute {name!r}")

"""Recipes: YAML read with positions, merged with what they extend, checked with all mistakes at once, plugins built.

Imported by `data` and what lies above it. Imports no torch. Does not belong here: checks that need a model or data
(`runs.preflight`), finding and calling plugins (`registry`).
"""

import warnings
from collections.abc import Mapping
from typing import Any

from neoplug.recipe.loading import ResolvedRecipe, load
from neoplug.recipe.schema import Data, Evaluate, Model, Recipe, Student
from neoplug.recipe.train import Train

__all__ = ["Data", "Evaluate", "Model", "Recipe", "ResolvedRecipe", "Student", "Train", "json_schema", "load"]


def json_schema() -> Mapping[str, Any]:
    """Return the JSON schema of recipes with every installed plugin's options; it imports all plugins."""
    from neoplug.recipe.editor_schema import json_schema

    return json_schema()


def __getattr__(name: str) -> Any:
    """Return `ResolvedRecipe` for its former name, with a DeprecationWarning."""
    if name == "Checked":
        what = "neoplug.recipe.Checked is deprecated: import ResolvedRecipe from neoplug.recipe"
        warnings.warn(what, DeprecationWarning, stacklevel=2)
        return ResolvedRecipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

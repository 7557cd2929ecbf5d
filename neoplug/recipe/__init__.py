"""The typed recipe: read, merged, checked (all mistakes at once), with its plugins built. Imports no torch.

model.py    what a recipe may say            source.py  files, `extends`, overrides -> one tree with marks
layers.py   one tree laid over another       paths.py   local paths in it
check.py    plugins: found, built, compared  loading.py all of it in order -> `Checked`
weights.py  a loss's weight, schedule and    editor.py   the JSON schema
            calibration
"""

from collections.abc import Mapping
from typing import Any

from neoplug.recipe.loading import Checked, load
from neoplug.recipe.schema import Data, Evaluate, Model, Recipe, Student, Train

__all__ = ["Checked", "Data", "Evaluate", "Model", "Recipe", "Student", "Train", "load", "schema"]


def schema() -> Mapping[str, Any]:
    """Return the JSON schema of recipes with every installed plugin's options; it imports all plugins."""
    from neoplug.recipe.editor_schema import schema

    return schema()

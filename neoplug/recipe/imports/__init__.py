"""Recipes from the configuration files of other projects: what each key becomes, and what has no counterpart.

Imported by `cli`. Does not belong here: reading of neoplug's own recipes (`recipe.source`).
"""

from neoplug.recipe.imports.kinds import KINDS, import_recipe

__all__ = ["KINDS", "import_recipe"]

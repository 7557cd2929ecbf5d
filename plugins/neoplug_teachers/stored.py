"""Read the teacher's output from a folder that `neoplug cache RECIPE --output DIR` wrote, perhaps on another machine.

The folder says which kind of cache it is, and has all that a run needs of the teacher: its output, output head,
configuration and tokenizer. Its documents must be those of the recipe.
"""

from dataclasses import dataclass
from pathlib import Path

from neoplug import hookimpl


@dataclass(eq=False)
class Stored:
    """Read a complete cache; the teacher's `model` is not needed."""

    path: Path  # the folder that `neoplug cache --output` wrote

    @hookimpl
    def cache_folder(self) -> Path:
        """Return the folder."""
        return self.path

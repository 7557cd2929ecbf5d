"""The limits on a recipe, and the count of what its texts hold: all of them together, aliases as often as used."""

from dataclasses import dataclass

from neoplug.errors import Mark, Problem, RecipeError

MAX_CHARACTERS = 200_000
MAX_NODES = 5_000
MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1
MAX_PLUGINS = 100
MAX_SOURCES = 1_000


@dataclass
class Size:
    """What has been read of a recipe: its file, the one that it extends, and its overrides."""

    characters: int = 0
    nodes: int = 0

    def add_text(self, characters: int, mark: Mark, subject: str = "") -> None:
        """Count characters of a text, or of a value that an alias repeats. Raises RecipeError above the limit."""
        self.characters += characters
        if self.characters > MAX_CHARACTERS:
            raise _too_large(f"{subject}more than {MAX_CHARACTERS:,} characters", mark)

    def add_node(self, depth: int, mark: Mark, subject: str = "") -> None:
        """Count a value. Raises RecipeError above the limits of values and depth."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _too_large(f"{subject}more than {MAX_NODES:,} values", mark)
        if depth > MAX_DEPTH:
            raise _too_large(f"{subject}more than {MAX_DEPTH} levels deep", mark)


def _too_large(what: str, mark: Mark) -> RecipeError:
    return RecipeError([Problem(what, mark=mark)])

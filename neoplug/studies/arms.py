"""The arms of a study: each is a recipe that differs from the base by one level of every axis."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neoplug.errors import Path as Key
from neoplug.recipe.tree import Node


@dataclass(frozen=True)
class Arm:
    """One arm.

    levels   axis -> level, in the order of the axes in the study file
    changes  what it changes in the base: the path of a key, and the node that is merged there
    """

    levels: Mapping[str, str]
    changes: tuple[tuple[Key, Node], ...] = field(default=(), repr=False, compare=False)

    @property
    def name(self) -> str:
        """The levels in the order of the axes, as `dora/neo`."""
        return "/".join(self.levels.values())

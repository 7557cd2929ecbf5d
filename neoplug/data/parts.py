"""The sources that a `data` section names, each with its key in the recipe and the words that tell its rows apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from neoplug.data.sources import Source, open_source
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data


@dataclass(frozen=True)
class Part:
    """One source of a recipe.

    key    its key in the recipe
    where  follows what is said of its rows, as " in eval_source"; empty for the only source
    """

    source: str
    split: str
    columns: Mapping[Any, str]
    key: Path
    where: str

    @cached_property
    def opened(self) -> Source:
        """Return where its rows come from; RecipeError where there is no such source."""
        return open_source(self.source, self.split, self.key)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Say of mistakes in the source's rows and columns that they are its own."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError([self._named(problem) for problem in error.problems]) from error

    def _named(self, problem: Problem) -> Problem:
        path = problem.path
        if path[:2] == ("data", "columns"):
            path = (*self.key[:-1], *path[1:])
        return replace(problem, what=problem.what + self.where, path=path)


def training_parts(data: Data) -> dict[str, Part]:
    """Return the sources to train on by name; the only one's name is empty."""
    several = data.source is None
    return {
        name: Part(
            source.source,
            source.split,
            source.columns,
            ("data", "sources", name, "source") if several else ("data", "source"),
            f" in {name}" if several else "",
        )
        for name, source in data.parts.items()
    }


def eval_part(data: Data) -> Part | None:
    """Return the source to measure on, where the recipe has one of its own."""
    if data.eval_source is None:
        return None
    return Part(data.eval_source, data.split, data.columns, ("data", "eval_source"), " in eval_source")

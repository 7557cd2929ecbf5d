"""The sources that a `data` section names, each with its key in the recipe and the words that tell its rows apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from neoplug.data.ingest.sources import First, Source, open_source
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data
    from neoplug.recipe.schema import Source as Said


@dataclass(frozen=True, eq=False)
class Part:
    """One source of a recipe.

    said   what the recipe says of it
    key    its key in the recipe
    where  follows what is told of its rows, as " in eval_source"; empty for the only source
    """

    said: Said
    key: Path
    where: str

    @property
    def source(self) -> str:
        """Return its name."""
        return self.said.source

    @property
    def columns(self) -> Mapping[Any, str]:
        """Return the source's names of our columns, where the recipe gives them."""
        return self.said.columns

    @cached_property
    def opened(self) -> Source:
        """Return where its rows come from; RecipeError where there is no such source."""
        opened = open_source(self.source, self.said.split, self.key, streaming=self.said.streaming)
        return opened if self.said.max_rows is None else First(opened, self.said.max_rows)

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
            mapped = self.columns or len(path) > 2  # else no line of the recipe speaks of columns
            path = (*self.key[:-1], *path[1:]) if mapped else self.key
        return replace(problem, what=problem.what + self.where, path=path)


def training_parts(data: Data) -> dict[str, Part]:
    """Return the sources to train on by name; the only one's name is empty."""
    return {
        name: Part(said, ("data", "sources", name, "source"), f" in {name}")
        if name
        else Part(said, ("data", "source"), "")
        for name, said in data.parts.items()
    }


def eval_part(data: Data) -> Part | None:
    """Return the source to measure on, where the recipe has one of its own."""
    source = data.eval_source or (data.source if data.eval_split else None)
    if source is None:
        return None
    key = "eval_split" if data.eval_split else "eval_source"
    return Part(data.read_like(source, data.eval_split), ("data", key), f" in {key}")

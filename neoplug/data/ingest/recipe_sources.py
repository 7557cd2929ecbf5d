"""The data sources of a recipe, each with its key in the recipe and its name in error messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from neoplug.data.ingest.hub import Stream, Table
from neoplug.data.ingest.sources import FirstRows, RowSource, open_source
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data
    from neoplug.recipe.schema import Source


@dataclass(frozen=True, eq=False)
class RecipeSource:
    """One source of a recipe.

    settings  its settings in the recipe
    key       its key in the recipe
    suffix    what errors about its rows end with, such as " in eval_source"; empty for the only training source
    """

    settings: Source
    key: Path
    suffix: str

    @property
    def name(self) -> str:
        """Return the source as the recipe has it: `python:MODULE`, a path or a hub id."""
        return self.settings.source

    @property
    def columns(self) -> Mapping[Any, str]:
        """Return the recipe's map from neoplug's column names to the source's; empty where there is none."""
        return self.settings.columns

    @cached_property
    def reader(self) -> RowSource:
        """Return the reader of its rows; RecipeError where there is no such source."""
        options = {name: getattr(self.settings, name) for name in ("streaming", "name", "revision")}
        reader = open_source(self.name, self.settings.split, self.key, **options)
        return reader if self.settings.max_rows is None else FirstRows(reader, self.settings.max_rows)

    @property
    def commit(self) -> str | None:
        """Return the commit of a dataset of the hub; None where it is unknown, and for other sources."""
        whole = self.reader.source if isinstance(self.reader, FirstRows) else self.reader
        return whole.commit if isinstance(whole, Table | Stream) else None

    @contextmanager
    def labelled_errors(self) -> Iterator[None]:
        """Add the source's suffix and key to a RecipeError about its rows or columns."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError([self._labelled(problem) for problem in error.problems]) from error

    def _labelled(self, problem: Problem) -> Problem:
        path = problem.path
        if path[:2] == ("data", "columns"):
            in_recipe = self.columns or len(path) > 2
            path = (*self.key[:-1], *path[1:]) if in_recipe else self.key
        return replace(problem, what=problem.what + self.suffix, path=path)


def training_sources(data: Data) -> dict[str, RecipeSource]:
    """Return the training sources by name; a single source has an empty name."""
    return {
        name: RecipeSource(settings, ("data", "sources", name, "source"), f" in {name}")
        if name
        else RecipeSource(settings, ("data", "source"), "")
        for name, settings in data.parts.items()
    }


def eval_source_of(data: Data) -> RecipeSource | None:
    """Return the evaluation source; None where the recipe has none, so that training rows are held out."""
    name = data.eval_source or (data.source if data.eval_split else None)
    if name is None:
        return None
    key, settings = "eval_split" if data.eval_split else "eval_source", data.read_like(name, data.eval_split)
    if data.eval_revision:
        settings = settings.model_copy(update={"revision": data.eval_revision})
    return RecipeSource(settings, ("data", key), f" in {key}")

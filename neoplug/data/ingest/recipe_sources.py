"""The data sources of a recipe, each with its key in the recipe and its name in error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from neoplug.data.ingest.hub import Stream, Table
from neoplug.data.ingest.sources import (
    FirstRows,
    PluginRows,
    RowSource,
    is_local,
    open_source,
    require_none,
    require_train_split,
)
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data
    from neoplug.recipe.schema import Source
    from neoplug.registry import OpenedSource, Plugins


@dataclass(frozen=True, eq=False)
class RecipeSource:
    """One source of a recipe.

    settings  its settings in the recipe
    key       its key in the recipe
    suffix    what errors about its rows end with, such as " in eval_source"; empty for the only training source
    opened    a function that returns what a plugin opened; None where the source is no plugin
    """

    settings: Source
    key: Path
    suffix: str
    opened: Callable[[], OpenedSource] | None = None

    @property
    def name(self) -> str:
        """Return the source as the recipe has it: `python:MODULE`, a path, a hub id, or the name of a plugin."""
        source = self.settings.source
        return source if isinstance(source, str) else next(iter(source))

    @property
    def is_local(self) -> bool:
        """Return whether the source is read without the Hugging Face hub, so that its first rows are read early."""
        return self.opened is not None or is_local(self.name)

    @property
    def columns(self) -> Mapping[Any, str]:
        """Return the recipe's map from neoplug's column names to the source's; empty where there is none."""
        return self.settings.columns

    @cached_property
    def reader(self) -> RowSource:
        """Return the reader of its rows; RecipeError where there is no such source."""
        reader = self._plugin_rows(self.opened) if self.opened else self._open()
        return reader if self.settings.max_rows is None else FirstRows(reader, self.settings.max_rows)

    def _open(self) -> RowSource:
        options = {name: getattr(self.settings, name) for name in ("streaming", "name", "revision")}
        return open_source(self.name, self.settings.split, self.key, **options)

    def _plugin_rows(self, opened: Callable[[], OpenedSource]) -> RowSource:
        """Return the rows of a plugin, which has one configuration, revision and split."""
        for name in ("name", "revision"):
            require_none(getattr(self.settings, name), name, f"`{self.name}` is a plugin, which has options", self.key)
        require_train_split(f"`{self.name}`", self.settings.split, self.key)
        return PluginRows(opened())

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


def training_sources(data: Data, plugins: Plugins | None = None) -> dict[str, RecipeSource]:
    """Return the training sources by name; a single source has an empty name.

    plugins  of the recipe; needed where a source is one
    """
    keys = {name: ("data", "sources", name, "source") if name else ("data", "source") for name in data.parts}
    return {
        name: RecipeSource(settings, keys[name], f" in {name}" if name else "", _opener(settings, keys[name], plugins))
        for name, settings in data.parts.items()
    }


def eval_source_of(data: Data, plugins: Plugins | None = None) -> RecipeSource | None:
    """Return the evaluation source; None where the recipe has none, so that training rows are held out.

    plugins  as for `training_sources`
    """
    place = "eval_source" if data.eval_source else "source"
    source = data.eval_source or (data.source if data.eval_split else None)
    if source is None:
        return None
    key, settings = "eval_split" if data.eval_split else "eval_source", data.read_like(source, data.eval_split)
    if data.eval_revision:
        settings = settings.model_copy(update={"revision": data.eval_revision})
    return RecipeSource(settings, ("data", key), f" in {key}", _opener(settings, ("data", place), plugins))


def _opener(settings: Source, place: Path, plugins: Plugins | None) -> Callable[[], OpenedSource] | None:
    """Return a function that returns what the plugin at `place` opened; None where the source is no plugin."""
    if isinstance(settings.source, str):
        return None
    assert plugins is not None
    return partial(plugins.source, ".".join(map(str, place)))

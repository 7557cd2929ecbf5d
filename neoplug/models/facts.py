"""Shipped facts about released models: their configurations, for plans without network or weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.models.reference import ResolvedModel


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    config  fields of its configuration, by transformers' names
    tokens  ids below this number are ordinary tokens, those from it on are special; None where it is unknown
    """

    config: Mapping[str, Any]
    tokens: int | None = None


@cache
def known_models() -> dict[str, Facts]:
    """Return the facts that are shipped, by the model's name on the hub."""
    text = files("neoplug_recipes").joinpath("published", "facts.yaml").read_text(encoding="utf-8")
    return {
        name: Facts(entry["config"], entry.get("tokens"))
        for first, entry in yaml.safe_load(text).items()
        for name in (first, *entry.get("also", ()))
    }


def facts_of(model: str, path: Key) -> Facts:
    """Return the facts about a model. Raises RecipeError, with `path` as its place, where none are shipped."""
    known = known_models()
    if model not in known:
        what = f"no facts about `{model}` are shipped{did_you_mean(model, known)}"
        fix = "plan without --offline, which reads the configuration of the model itself"
        raise RecipeError([Problem(what, "an offline plan knows only the models of facts.yaml", fix, path)])
    return known[model]


@contextmanager
def configured(model: str, path: Key) -> Iterator[ResolvedModel]:
    """Yield a model that has a configuration and nothing else. Raises RecipeError where no facts are shipped."""
    from transformers import AutoConfig

    facts = facts_of(model, path)
    with TemporaryDirectory() as folder:
        AutoConfig.for_model(**facts.config).to_json_file(Path(folder, "config.json"))
        yield ResolvedModel(folder, None, model, "local")

"""What a plugin refuses: with an error or a problem that says why."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from neoplug.errors import NeoplugError
from neoplug.testing.hooks import answer
from neoplug.testing.search import Broken


@contextmanager
def refusing(kind: type[NeoplugError], what: str, reason: str = "") -> Iterator[None]:
    """Raise Broken unless the block raises an error of a kind that gives this reason; without one, any."""
    try:
        yield
    except kind as error:
        if (reason or "\nwhy: ") not in error.message():
            raise Broken(f"the error that refuses {what} does not say why: {error}") from error
    else:
        raise Broken(f"{what} is not refused")


def refused_by_check(adapter: Any, what: str, *, load: Mapping[str, Any] | None = None, **train: Any) -> None:
    """Raise Broken unless the adapter's `check` refuses a recipe, with reason and remedy."""
    recipe = recipe_with(load, **train)
    found = answer(adapter, "check", recipe=recipe) or []
    if len(found) != 1 or not (found[0].why and found[0].fix):
        raise Broken(f"it declares that it refuses {what}, but its `check` does not, with reason and remedy")


def recipe_with(load: Mapping[str, Any] | None = None, *, gradient_checkpointing: bool = False) -> Any:
    """Return the parts of a recipe that the `check` of an adapter reads."""
    train = SimpleNamespace(gradient_checkpointing=gradient_checkpointing)
    return SimpleNamespace(adapter={}, train=train, student=SimpleNamespace(load=load or {}))

"""Fair by construction: the size at which a recipe's adapter has as many trainable parameters as another.

An adapter's trait `sized_by` names the option that sets its size: a rank, a block. Parameters are counted on the meta
device; a size is illegal if the adapter refuses it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from neoplug.errors import PluginError, RecipeError, UsageError
from neoplug.registry import Plugins
from neoplug.registry.adapter_traits import AdapterTraits
from neoplug.runs.size_search import nearest
from neoplug.seeds import generator

if TYPE_CHECKING:
    from torch import nn

    from neoplug.recipe import ResolvedRecipe

START = 8  # where the recipe names no size, since the plugin fits one to the model
OFF = 0.05  # relative to the wanted count: the smallest or largest size is no match if it is further away


@dataclass(frozen=True)
class Match:
    """A size found.

    wanted      wanted trainable parameters
    option      by which the adapter is sized
    value       of that option
    trainable   parameters that it gives
    difference  of these from `wanted`, as a share of it
    override    what to write behind the recipe on the command line
    """

    wanted: int
    option: str
    value: int
    trainable: int
    difference: float
    override: str

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


def match(checked: ResolvedRecipe, skeleton: nn.Module, steps: int, wanted: int) -> Match:
    """Return the size at which the recipe's adapter has nearest to `wanted` trainable parameters.

    skeleton  the prepared student without its adapter, on the meta device; stays as it is
    steps     of the run
    Raises UsageError where the adapter has no size, or none near `wanted`.
    """
    own = sum(weight.numel() for weight in skeleton.parameters())
    _refuse(checked, own, wanted)
    ((section, name),) = checked.plugins.named("add_adapter")
    plugin = checked.plugins.section(section)[name]
    count = _counter(checked, skeleton, steps, name)
    option = _option(plugin, name, lambda: count(plugin))
    given = getattr(plugin, option)
    with _silent():
        found = nearest(
            lambda size: _sized(plugin, option, size, count), wanted, given if type(given) is int else START,
            _divisors(skeleton),
        )  # fmt: skip
    found = [(size, parameters) for size, parameters in found if parameters]
    if not found:
        raise UsageError(f"no {option} of `{name}` that was tried fits the student, so that none can be matched")
    value, trainable = found[0]
    key = f"{section}.{name}.{option}"
    best = Match(wanted, option, value, trainable, trainable / wanted - 1, shlex.quote(f"{key}={value}"))
    ends = min(count for _, count in found), max(count for _, count in found)
    if not ends[0] <= wanted <= ends[1] and abs(best.difference) > OFF:
        raise _out_of_reach(best, name, most=wanted > ends[1])
    return best


def _refuse(checked: ResolvedRecipe, own: int, wanted: int) -> None:
    """Refuse what has no answer, before anything is tried."""
    if not 1 <= wanted <= own:
        raise UsageError(
            f"{wanted:,} trainable parameters cannot be matched\n"
            f"why: the student has {own:,} parameters itself, and an adapter is to have fewer\n"
            f"fix: choose a number from 1 to {own}"
        )
    if checked.recipe.student.adapter_path is not None:
        raise UsageError(
            "an adapter that starts from a stored one has no size to choose\n"
            "why: student.adapter_path names it, and its weights have the size that they have\n"
            "fix: take student.adapter_path away, or match the others to this one"
        )


def _option(plugin: Any, name: str, count: Callable[[], int | None]) -> str:
    """Return the option that sizes an adapter. Raises UsageError where there is none."""
    option = AdapterTraits.of(plugin).sized_by
    if is_dataclass(plugin) and option in {field.name for field in fields(plugin)}:
        return option
    has = count()
    raise UsageError(
        f"`{name}` has no option that sizes it\n"
        f"why: it has {has or 0:,} trainable parameters here, and its traits name no option in `sized_by`\n"
        f"fix: match the others to it, by --match parameters={has}"
    )


def _counter(checked: ResolvedRecipe, skeleton: nn.Module, steps: int, name: str) -> Callable[[Any], int | None]:
    """Return a function that counts the trainable parameters with an adapter; None if it is refused."""

    def count(plugin: Any) -> int | None:
        rng = generator(checked.recipe.seed, "rehearsal")
        try:
            alone = Plugins({"adapter": {name: plugin}})
            model: nn.Module = alone.one(
                "add_adapter", model=deepcopy(skeleton), batches=None, total_steps=steps, rng=rng
            )
        except (RecipeError, PluginError):
            return None
        return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    return count


def _sized(plugin: Any, option: str, size: int, count: Callable[[Any], int | None]) -> int | None:
    """Return the count of an adapter at another size, None where its own checks refuse that."""
    try:
        return count(replace(plugin, **{option: size}))
    except (ValueError, TypeError, RecipeError):
        return None


def _divisors(skeleton: nn.Module) -> set[int]:
    """Return what divides a size in the model: an adapter in blocks takes nothing else."""
    sizes = {size for weight in skeleton.parameters() for size in weight.shape}
    return {part for size in sizes for small in range(1, int(size**0.5) + 1) if size % small == 0
            for part in (small, size // small)}  # fmt: skip


def _out_of_reach(best: Match, name: str, most: bool) -> UsageError:
    return UsageError(
        f"`{name}` cannot have {best.wanted:,} trainable parameters here\n"
        f"why: with {best.option} {best.value} it has {best.trainable:,}, the {'most' if most else 'fewest'} "
        f"that its other options allow\n"
        f"fix: {best.override}, and match the others to it by --match parameters={best.trainable}"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the log of plugins while sizes are tried."""
    logger = logging.getLogger("neoplug")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

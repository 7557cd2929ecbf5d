"""Matching of adapter sizes: the size at which a recipe's adapter has a wanted number of trainable parameters.

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

START = 8  # first size to try where the recipe sets none, since the plugin chooses one by the model
TOLERANCE = 0.05  # largest relative difference at which the smallest or the largest size still counts as a match


@dataclass(frozen=True)
class Match:
    """The size at which an adapter is nearest to a wanted number of trainable parameters.

    wanted      the wanted number
    option      the option that sets the size
    value       the size: the value of this option
    trainable   trainable parameters at this size
    difference  (trainable - wanted) / wanted
    override    the override that sets the size on the command line, such as adapter.lora.r=8
    """

    wanted: int
    option: str
    value: int
    trainable: int
    difference: float
    override: str

    def as_dict(self) -> dict[str, Any]:
        """Return the match as plain data for JSON."""
        return asdict(self)


def match(checked: ResolvedRecipe, skeleton: nn.Module, steps: int, wanted: int) -> Match:
    """Return the size at which the number of the adapter's trainable parameters is nearest to `wanted`.

    skeleton  the prepared student without its adapter, on the meta device; not modified
    steps     optimizer steps of the run

    Raises:
        UsageError: no option sets the adapter's size, or no size comes near `wanted`.
    """
    student_parameters = sum(weight.numel() for weight in skeleton.parameters())
    _validate_request(checked, student_parameters, wanted)
    ((section, name),) = checked.plugins.named("add_adapter")
    plugin = checked.plugins.section(section)[name]
    count = _parameter_counter(checked, skeleton, steps, name)
    option = _size_option(plugin, name, lambda: count(plugin))
    given = getattr(plugin, option)
    with _silent():
        found = nearest(
            lambda size: _count_at_size(plugin, option, size, count), wanted, given if type(given) is int else START,
            _divisors(skeleton),
        )  # fmt: skip
    found = [(size, parameters) for size, parameters in found if parameters]
    if not found:
        raise UsageError(f"no {option} of `{name}` that was tried fits the student")
    value, trainable = found[0]
    key = f"{section}.{name}.{option}"
    best = Match(wanted, option, value, trainable, trainable / wanted - 1, shlex.quote(f"{key}={value}"))
    if abs(best.difference) > TOLERANCE:
        with _silent():  # the sizes beside it may not be among those tried
            beside = [_count_at_size(plugin, option, value + step, count) for step in (-1, 1)]
        counts = [parameters for parameters in (*(tried for _, tried in found), *beside) if parameters]
        if not min(counts) <= wanted <= max(counts):
            raise _out_of_reach(best, name, most=wanted > max(counts))
    return best


def _validate_request(checked: ResolvedRecipe, student_parameters: int, wanted: int) -> None:
    """Refuse a number that no adapter can have, and an adapter that starts from stored weights."""
    if not 1 <= wanted <= student_parameters:
        raise UsageError(
            f"{wanted:,} trainable parameters cannot be matched\n"
            f"why: the student has {student_parameters:,} parameters itself, and an adapter may not have more\n"
            f"fix: choose a number from 1 to {student_parameters}"
        )
    if checked.recipe.student.adapter_path is not None:
        raise UsageError(
            "an adapter that starts from a stored one has no size to choose\n"
            "why: student.adapter_path names it, and its weights have the size that they have\n"
            "fix: remove student.adapter_path, or match the others to this one"
        )


def _size_option(plugin: Any, name: str, count: Callable[[], int | None]) -> str:
    """Return the name of the option that sets an adapter's size.

    Raises:
        UsageError: there is none.
    """
    option = AdapterTraits.of(plugin).sized_by
    if is_dataclass(plugin) and option in {field.name for field in fields(plugin)}:
        return option
    trainable = count()
    raise UsageError(
        f"`{name}` has no option that sizes it\n"
        f"why: it has {trainable or 0:,} trainable parameters here, and its traits name no option in `sized_by`\n"
        f"fix: match the others to it, by --match parameters={trainable}"
    )


def _parameter_counter(
    checked: ResolvedRecipe, skeleton: nn.Module, steps: int, name: str
) -> Callable[[Any], int | None]:
    """Return a function adapter -> trainable parameters of the skeleton with it; None if adding it fails."""

    def count(plugin: Any) -> int | None:
        rng = generator(checked.recipe.seed, "rehearsal")
        try:
            adapter = Plugins({"adapter": {name: plugin}})
            model: nn.Module = adapter.one(
                "add_adapter", model=deepcopy(skeleton), batches=None, total_steps=steps, rng=rng
            )
        except (RecipeError, PluginError):
            return None
        return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    return count


def _count_at_size(plugin: Any, option: str, size: int, count: Callable[[Any], int | None]) -> int | None:
    """Return the count with the adapter at another size; None where the adapter refuses the size."""
    try:
        return count(replace(plugin, **{option: size}))
    except (ValueError, TypeError, RecipeError):
        return None


def _divisors(skeleton: nn.Module) -> set[int]:
    """Return the divisors of all dimensions of the weights: the size of a block is legal only if it is one of them."""
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

"""`train.per_device_train_batch_size: auto`: the largest micro-batch whose step fits the device's memory.

The rows of an optimizer step stay those that the recipe states: `gradient_accumulation_steps` counts them for each
device, as if each row were a micro-batch, and `auto` puts as many of them as fit into one. Sizes that divide this
number are tried, by bisection on the memory that a step on shapes is foretold to need (`runs.fake_step`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from neoplug.environment.memory import available_memory
from neoplug.errors import Problem, RecipeError
from neoplug.runs.fake_step import CannotForetellError, foretell

if TYPE_CHECKING:
    from neoplug.distributed.world import World
    from neoplug.hookspecs import Role
    from neoplug.models.reference import ResolvedModel
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.inputs import RunInputs

logger = logging.getLogger(__name__)

SIZE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
AUTO = "auto"
MARGIN = 1.15  # of the foretold peak: what the allocator and operators need besides the tensors that are counted


def chosen_sizes(checked: ResolvedRecipe, inputs: RunInputs, device: torch.device) -> dict[str, int]:
    """Return key of `train` -> number, for the largest micro-batch that fits on `device`; {} without `auto`.

    Raises:
        RecipeError: no step of the recipe can be run on shapes.
    """
    if checked.recipe.train.per_device_train_batch_size != AUTO:
        return {}
    models: dict[Role, ResolvedModel] = {"student": inputs.student}
    if inputs.teacher is not None:
        models["teacher"] = inputs.teacher

    def needed(candidate: ResolvedRecipe) -> int:
        found = foretell(candidate, models, inputs.vocabulary, inputs.corpus)
        return found.on_device.get(found.device, 0)

    try:
        return sizes(largest_micro_batch(checked, needed, room_of(device)))
    except CannotForetellError as error:
        what = f"`{SIZE}` cannot be chosen"
        why, fix = f"a step of this recipe cannot be run on shapes: {error}", "give it a number"
        raise RecipeError([Problem(what, why, fix, ("train", SIZE))]) from error


def sizes_here(checked: ResolvedRecipe, inputs: RunInputs, world: World) -> dict[str, int]:
    """Return the sizes that are chosen for `auto` by their keys in `train`, those of the main process on every rank."""
    chosen = chosen_sizes(checked, inputs, world.device) if world.is_main else {}
    return world.broadcast(chosen)


def largest_micro_batch(checked: ResolvedRecipe, needed: Callable[[ResolvedRecipe], int], room: int) -> ResolvedRecipe:
    """Return the recipe with the largest micro-batch that fits into `room` bytes; with one row where none does.

    needed  recipe with numbers -> the bytes of its step
    """
    rows = checked.recipe.train.gradient_accumulation_steps
    candidates = divisors(rows)
    low, high, peak = 0, len(candidates), 0  # the one at `low` is taken, that at `high` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        bytes_ = needed(with_sizes(checked, candidates[middle], rows // candidates[middle]))
        if bytes_ * MARGIN <= room:
            low, peak = middle, bytes_
        else:
            high = middle
    size = candidates[low]
    known = f"its step is foretold to need {peak / 1e9:,.2f} GB of tensors" if peak else "the smallest there is"
    logger.info(
        "%s: %d, so that a step of %d rows on each device has %d micro-batches; %s, of %.2f GB that are free",
        SIZE, size, rows, rows // size, known, room / 1e9,
    )  # fmt: skip
    return with_sizes(checked, size, rows // size)


def with_sizes(checked: ResolvedRecipe, size: int, accumulation: int) -> ResolvedRecipe:
    """Return the recipe with a number of rows in a micro-batch, and of micro-batches in a step."""
    return with_chosen(checked, {SIZE: size, ACCUMULATION: accumulation})


def with_chosen(checked: ResolvedRecipe, chosen: Mapping[str, int]) -> ResolvedRecipe:
    """Return the recipe with the numbers that were chosen for keys of `train`; unchanged where none was."""
    return checked.pinned({("train", key): number for key, number in chosen.items()})


def halved(checked: ResolvedRecipe) -> ResolvedRecipe | None:
    """Return the recipe with half the micro-batch, or the next smaller that divides the rows; None below one row."""
    train = checked.recipe.train
    rows = train.micro_batch * train.gradient_accumulation_steps
    smaller = [size for size in divisors(rows) if size <= train.micro_batch // 2]
    return with_sizes(checked, smaller[-1], rows // smaller[-1]) if smaller else None


def sizes(checked: ResolvedRecipe) -> dict[str, int]:
    """Return key of `train` -> number."""
    train = checked.recipe.train
    return {SIZE: train.micro_batch, ACCUMULATION: train.gradient_accumulation_steps}


def divisors(rows: int) -> list[int]:
    """Return the numbers that divide `rows`, ascending."""
    small = [number for number in range(1, int(rows**0.5) + 1) if rows % number == 0]
    return sorted({*small, *(rows // number for number in small)})


def room_of(device: torch.device) -> int:
    """Return the bytes that are free for one process on a device; the CPU's are shared by the ranks of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

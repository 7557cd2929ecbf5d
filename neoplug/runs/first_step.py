"""Training whose first step may run out of memory where `auto` chose the micro-batch: once more, with half of it."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from neoplug.environment.memory import is_out_of_memory
from neoplug.runs.micro_batch import halved, sizes
from neoplug.training import checkpoint
from neoplug.training.loop import LoopConfig, LoopEvents, distil

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.directory import RunDir

logger = logging.getLogger(__name__)


def distil_in_memory(
    config: LoopConfig, events: LoopEvents, first: int, directory: RunDir, checked: ResolvedRecipe
) -> int:
    """Run the loop from step `first`; return the steps done.

    Where the recipe's micro-batch was chosen, and memory runs out in the first step before any weight has changed, the
    step begins again with half of it and more micro-batches, and recipe and lock of the run say so. Several ranks do
    not begin again: they would have to agree while one of them has failed.

    checked  the run's recipe, with numbers
    """
    smaller = None
    if first == 0 and config.world.size == 1 and "chosen" in directory.lock:
        smaller = halved(checked)
    if smaller is None:
        return distil(config, events, first)
    states = checkpoint.pack(config.plugins)
    try:
        return distil(config, events, first)
    except Exception as error:
        ran_out = any(cause is not None and is_out_of_memory(cause) for cause in (error, error.__cause__))
        if not ran_out or events.metrics.last_step or config.optimizer.state:
            raise
    train = smaller.recipe.train  # from here on the error, which holds the tensors of the step, is gone
    logger.warning(
        "memory ran out in the first step: it begins again with %d rows in a micro-batch and %d micro-batches",
        train.micro_batch, train.gradient_accumulation_steps,
    )  # fmt: skip
    directory.choose(sizes(smaller))
    config.optimizer.zero_grad()
    checkpoint.unpack(states, config.plugins)
    gc.collect()
    if config.student.device.type == "cuda":
        torch.cuda.empty_cache()
    size, accumulation = train.micro_batch, train.gradient_accumulation_steps
    sampler = replace(config.sampler, batch_size=size, accumulation=accumulation)
    return distil(replace(config, sampler=sampler, settings=train), events, first)

"""Parameter groups, the optimizer and its schedule."""

import logging
from collections import Counter
from math import ceil
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from neoplug.errors import RunError
from neoplug.recipe import Train
from neoplug.registry import Plugins, answered

logger = logging.getLogger(__name__)


def make_optimizer(model: nn.Module, plugins: Plugins, learning_rate: float) -> Optimizer:
    """Return the recipe's optimizer over all trainable parameters.

    Raises:
        RunError: there is no trainable parameter, or a plugin's groups do not contain each of them exactly once.
    """
    trainable = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise RunError(
            "the model has no trainable parameter\nwhy: the adapter left no parameter with requires_grad\n"
            "fix: check its target_modules, or name another adapter"
        )
    groups = plugins.one("param_groups", model=model, learning_rate=learning_rate)
    if groups is None:
        groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    groups = [{"lr": learning_rate, **group} for group in groups]
    groups = [group for group in groups if group["params"]]
    _validate_groups(groups, trainable)
    optimizer: Optimizer = plugins.one("make_optimizer", groups=groups, model=model)
    return optimizer


def make_schedule(optimizer: Optimizer, plugins: Plugins, train: Train, total_steps: int) -> LRScheduler:
    """Return the recipe's schedule: it sets each group's learning rate to a multiple of that in the group."""
    warmup = int(train.warmup_steps if train.warmup_steps >= 1 else ceil(train.warmup_steps * total_steps))
    return LambdaLR(
        optimizer, lambda step: plugins.one("rate", step=step, total_steps=total_steps, warmup_steps=warmup)
    )


def warn_without_warmup(plugins: Plugins, train: Train) -> None:
    """Log a warning where the recipe sets a warm-up and its schedule has none."""
    (name,) = plugins.implements("rate")
    taken = answered(type(plugins.instances()[name]))["rate"].signature.parameters
    if train.warmup_steps and "warmup_steps" in train.model_fields_set and "warmup_steps" not in taken:
        logger.warning("train.warmup_steps has no effect with `%s`, which has no warm-up", name)


def _validate_groups(groups: list[dict[str, Any]], trainable: dict[int, str]) -> None:
    """Refuse parameter groups that do not contain each trainable parameter exactly once and nothing else."""
    grouped = Counter(id(parameter) for group in groups for parameter in group["params"])
    missing = [name for key, name in trainable.items() if key not in grouped]
    twice = [trainable.get(key, "a frozen parameter") for key, times in grouped.items() if times > 1]
    if missing or twice or len(grouped) != len(trainable):
        named = ", ".join((missing + twice)[:3])
        raise RunError(
            f"param_groups must cover each trainable parameter exactly once; see {named or 'frozen parameters'}"
        )

"""Calls of a plugin's hooks as a run makes them: with the arguments that they take, and their answers checked."""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from neoplug.registry.dispatch import checked_call
from neoplug.testing.loss_examples import hook


def answer(plugin: Any, name: str, /, **arguments: Any) -> Any:
    """Return what a plugin's hook answers; None where it does not implement the hook.

    Raises PluginError where the plugin raises an exception, or its answer breaks the rule of the hook.
    """
    function = hook(plugin, name)
    if function is None:
        return None
    taken = [arguments[argument] for argument in inspect.signature(function).parameters]
    return checked_call(name, f"{type(plugin).__name__}", function, taken, arguments)


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, as another process has other states of them."""
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])

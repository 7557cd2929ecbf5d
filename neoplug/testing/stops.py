"""Conformance tests of plugins that can end training, on runs whose losses stay, fall, rise or spike.

from neoplug.testing import check_stop

def test_mine():
    check_stop(Mine())
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch

from neoplug.errors import NeoplugError
from neoplug.registry.measures import MEASURES
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, properties_of

EVERY = 5  # steps between evaluations
STEPS = 60
# What each run is -> the loss of each step.
RUNS: dict[str, list[float]] = {
    "a loss that stays": [1.0] * STEPS,
    "a loss that falls": [1.0 / (1 + step) for step in range(STEPS)],
    "a loss that rises": [0.1 * step for step in range(STEPS)],
    "a spike of the loss": [1.0] * 40 + [50.0] * 20,
    "a negative loss": [-1.0 - 0.1 * step for step in range(STEPS)],
}


def check_stop(stop: Any) -> None:
    """Test every property of plugins that can end training.

    Raises AssertionError for a property that does not hold, with the run that breaks it.
    """
    STOP.hold(stop, 0)


class StopProperties:
    """The properties of plugins that can end training: each method without underscore raises Broken where it fails."""

    def reasons(self, stop: Any) -> None:
        """It answers None, or the reason as a sentence in one line."""
        for name in RUNS:
            for reason in _reasons(stop, name):
                if reason is not None and (not reason.strip() or not reason.isprintable()):
                    raise Broken(f"{name}: its reason is {reason!r}")

    def resumed(self, stop: Any) -> None:
        """Resumed from the state that a checkpoint stores, it ends training at the same step, for the same reason."""
        for name in RUNS:
            whole = _reasons(stop, name)
            for number in range(1, len(whole), 7):
                if _reasons(stop, name, resumed_at=number) != whole:
                    raise Broken(f"{name}: resumed after {number} lines and evaluations, it answers otherwise")

    def repeated(self, stop: Any) -> None:
        """It draws no random numbers, so that all ranks agree."""
        for name in RUNS:
            found = []
            for seed in range(2):
                with global_seeds(seed):
                    found.append(_reasons(stop, name))
            if found[0] != found[1]:
                raise Broken(f"{name}: it answers otherwise on another rank")


STOP = Kit("plugin that can end training", {}, once=properties_of(StopProperties()))


def _shown(losses: list[float]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `should_stop`: for each step its line, and every few steps an evaluation."""
    for step, loss in enumerate(losses, 1):
        line = {
            "step": step, "loss": loss, "losses": {"loss": loss}, "learning_rate": 0.1, "grad_norm": 1.0,
            "tokens": 64, "answer_tokens": 32, "seconds": 0.5,
        }  # fmt: skip
        yield {"step": step, "metrics": line, "measured": None}
        if step % EVERY == 0:
            measured = dict.fromkeys(MEASURES, loss)
            yield {"step": step, "metrics": line, "measured": {"step": step, **measured, "probes": {}}}


def _reasons(stop: Any, name: str, resumed_at: int | None = None) -> list[str | None]:
    """Return the answers of a new instance on a run, which goes on from its stored state at `resumed_at`.

    Raises:
        Broken: the plugin raises an error, or changes what it is shown.
        TypeError: it has no `should_stop`.
    """
    if hook(stop, "should_stop") is None:
        raise TypeError(f"{type(stop).__name__} has no `should_stop`")
    plugin, found = replace(stop), []
    for number, arguments in enumerate(_shown(RUNS[name])):
        if number == resumed_at:
            plugin = _resumed(plugin, replace(stop))
        before = deepcopy(arguments)
        try:
            found.append(answer(plugin, "should_stop", **arguments))
        except NeoplugError as error:
            raise Broken(f"{name}: {error.message().partition(chr(10))[0]}") from error
        if arguments != before:
            raise Broken(f"{name}: it changes what it is shown")
    return found


def _resumed(plugin: Any, again: Any) -> Any:
    """Return `again` with the state of the plugin, as a checkpoint stores it."""
    if hook(plugin, "state_dict") is not None:
        file = BytesIO()
        torch.save(plugin.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
    return again

"""Whether a plugin ends training: `should_stop` with each line of metrics.jsonl and each evaluation, once.

Every rank calls it with the same lines but for their clock, so ranks may answer differently; they all end at the same
step, for the reason of the lowest rank that has one.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from neoplug.registry import Plugins
from neoplug.runs.metrics_file import finite

Gather = Callable[[list[str]], list[str]]


class Stopping:
    """Asks the plugins that implement `should_stop`.

    gather  returns the values of all ranks in the order of ranks, on every rank
    """

    def __init__(self, plugins: Plugins, gather: Gather) -> None:
        self._plugins = plugins
        self._gather = gather
        self._lines: list[dict[str, Any]] = []  # not shown to the plugins yet
        self._last_line: dict[str, Any] = {}

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Add lines of metrics.jsonl, which `after_lines` shows to the plugins."""
        self._lines += lines

    def after_lines(self) -> str | None:
        """Return why training is to end, by the lines since the last call; None: it goes on. The same on all ranks."""
        lines, self._lines = self._lines, []
        self._last_line = lines[-1]
        return self._agreed([reason for line in lines for reason in self._reasons(line, None)])

    def after_evaluation(self, measured: Mapping[str, Any]) -> str | None:
        """Return the same by an evaluation after the last line."""
        return self._agreed(self._reasons(self._last_line, measured))

    def _reasons(self, line: dict[str, Any], measured: Mapping[str, Any] | None) -> list[str]:
        """Return the reasons of the plugins of this rank, each after the name of its plugin."""
        reasons = {
            name: should_stop(step=line["step"], metrics=deepcopy(finite(line)), measured=deepcopy(finite(measured)))
            for name, should_stop in self._plugins.functions("should_stop").items()
        }
        return [f"{name}: {reason}" for name, reason in reasons.items() if reason]

    def _agreed(self, reasons: list[str]) -> str | None:
        """Return the first reason of the first rank that has one; ranks synchronise where a plugin may give one."""
        return next(iter(self._gather(reasons[:1])), None) if self._plugins.implements("should_stop") else None

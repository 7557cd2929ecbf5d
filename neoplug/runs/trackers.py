"""Plugins that record a run elsewhere, as trackers of experiments do; metrics.jsonl remains the complete record.

A tracker never ends a run: if one fails, the error is logged and it is not called again.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from neoplug.registry import Plugins
from neoplug.runs.metrics_file import finite

logger = logging.getLogger(__name__)


class Trackers:
    """Calls the hooks of trackers, each with copies of its arguments.

    plugins  those of the run on the main process; none on the others
    """

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._failed: set[str] = set()

    def open(self, path: Path, config: Mapping[str, Any], group: str | None) -> None:
        """Open all trackers.

        path    the run directory
        config  the resolved recipe
        group   what the run belongs to, such as the name of a study; None: nothing
        """
        self._call(self._plugins.functions("open_tracker"), path=path.absolute(), config=config, group=group)

    def log(self, line: Mapping[str, Any]) -> None:
        """Report a line of metrics.jsonl, as it is there."""
        self._call(self._plugins.functions("on_log"), line=finite(line))

    def evaluation(self, step: int, measured: Mapping[str, Any], whose: str = "student") -> None:
        """Report an evaluation of the student or of the teacher after `step` optimizer steps, as in result.json."""
        self._call(self._plugins.functions("on_measured"), step=step, measured=finite(measured), whose=whose)

    def close(self) -> None:
        """Close all trackers, which write what they have buffered."""
        self._call(self._plugins.functions("close_tracker"))

    def _call(self, functions: Mapping[str, Callable[..., Any]], **arguments: Any) -> None:
        """Call the functions of the plugins that have not failed, by name; log the error of one that fails now."""
        for name, function in functions.items():
            if name in self._failed:
                continue
            try:
                function(**deepcopy(arguments))
            except Exception as error:  # whatever a server or a library of a tracker may raise
                self._failed.add(name)
                cause = error.__cause__ or error
                kind = type(cause).__name__
                logger.warning("%s is left out from here on: %s: %s; metrics.jsonl has it all", name, kind, cause)
                logger.debug("what %s raised", name, exc_info=True)

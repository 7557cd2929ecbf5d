"""A source of rows that a plugin opened: rows and identity are checked where they arrive, and errors have a place."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug.answers.checks import WORDS, read_identity, read_row, read_rows
from neoplug.answers.plain_values import Refusal
from neoplug.errors import AnswerError, OptionError, PluginError, Problem, RecipeError, UsageError, plugin_errors
from neoplug.errors import Path as Key
from neoplug.files import sha256_of
from neoplug.registry.discovery import source_of

HOOK = "open_source"


@dataclass(frozen=True, eq=False)
class OpenedSource:
    """The rows of a source.

    plugin    the plugin that opened it
    label     the plugin's name in messages
    path      the plugin's key in the recipe
    function  the method that implements `open_source`
    source    what it returned: `neoplug.Source`, or an object with its two methods
    """

    plugin: Any
    label: str
    path: Key
    function: Callable[..., Any]
    source: Any

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows; each call starts again at the first.

        Raises:
            RecipeError: an option is wrong.
            PluginError: the plugin failed, or yields something else than rows.
        """
        with self._placed(), plugin_errors(self.label, HOOK):
            for number, row in enumerate(self._checked(read_rows, self.source.rows())):
                yield self._checked(read_row, row, number)

    def identity(self) -> Any:
        """Return what all rows depend on, in JSON types: the plugin's answer, and the hash of its code.

        Raises as `rows`.
        """
        with self._placed(), plugin_errors(self.label, HOOK):
            answer = self.source.identity()
        return [_hash_of_code(type(self.plugin)), self._checked(read_identity, answer)]

    def _checked(self, check: Callable[..., Any], *answer: Any) -> Any:
        try:
            return check(*answer)
        except Refusal as refusal:
            what, (why, fix) = refusal.sentence(self.label, HOOK), WORDS["source"]
            raise AnswerError(self.label, HOOK, what, why, fix, self.function) from None

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Raise RecipeError at the plugin's key, or at the option that it names, in place of what it tells the user."""
        try:
            yield
        except UsageError as error:
            if type(error) is not UsageError:
                raise
            raise RecipeError([Problem.of(error, self.path)]) from error
        except PluginError as error:
            if not isinstance(wrong := error.__cause__, OptionError):
                raise
            raise RecipeError([Problem.of(UsageError(str(wrong)), (*self.path, wrong.option))]) from wrong


def _hash_of_code(cls: type) -> str:
    """Return the hash of the file that defines a class; of its text, where it has no file, as in a notebook."""
    try:
        return sha256_of(Path(inspect.getfile(cls)))
    except (OSError, TypeError):
        return hashlib.sha256((source_of(cls) or "").encode()).hexdigest()

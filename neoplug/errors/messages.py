"""Errors for users: each has a message (place, what is wrong, why, fix) and an exit code."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import entry_points
from inspect import unwrap
from itertools import islice
from linecache import getline, getlines
from traceback import walk_tb
from typing import Any

from neoplug.errors.text import CUT, escaped, one_for_one, presentable, redacted

Path = tuple[str | int, ...]  # a key in a recipe

EXCERPT = 200  # columns of a quoted line
SHOWN_PROBLEMS = 30
LONGEST_NAME = 100  # of those that a suggestion is sought for, and among
MOST_NAMES = 1_000


@dataclass(frozen=True)
class Mark:
    """A place in a text: 1-based line and column, the length of the marked part, and the whole line."""

    file: str
    line: int
    column: int
    length: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def excerpt(self, width: int | None = None) -> str:
        """Return the line with carets under the marked part; cut around that part to `width` columns, or EXCERPT."""
        number = str(self.line)
        room = max(40, (width or EXCERPT) - len(number) - 5 - 2 * len(CUT))
        start, length = self.column - 1, max(1, self.length)
        first = max(0, min(start - room // 4, len(self.text) - room))
        if len(self.text) <= room + 2 * len(CUT):
            first, room = 0, len(self.text)
        lead, rest = CUT if first else "", CUT if first + room < len(self.text) else ""
        length = max(1, min(length, first + room - start))
        text = lead + one_for_one(redacted(self.text)[first : first + room]) + rest
        return f"  {number} | {text}\n  {' ' * len(number)} | {' ' * (start + len(lead) - first)}{'^' * length}"


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe.

    what    what is wrong, one sentence without a full stop
    why     why it cannot work (may be empty)
    fix     what to do instead (may be empty)
    path    the key in the recipe, as ("adapter", "dora", "r"), from which its line is found
    mark    the place in the file; None until it is looked up from `path`
    """

    what: str
    why: str = ""
    fix: str = ""
    path: Path = ()
    mark: Mark | None = None

    @classmethod
    def of(cls, error: "UsageError", path: Path) -> "Problem":
        """Return the problem that an error describes, whose lines may begin with `why: ` and `fix: `."""
        text, _, fix = str(error).partition("\nfix: ")
        what, _, why = text.partition("\nwhy: ")
        return cls(what, why, fix, path)

    def __str__(self) -> str:
        return self.message()

    def message(self, width: int | None = None) -> str:
        """Return the message; the quoted line is cut to `width` columns, if given."""
        place = escaped(redacted(str(self.mark or ".".join(map(str, self.path)))), keep="")
        what = [f"{place}: {_part(self.what)}" if place else _part(self.what)]
        excerpt = [self.mark.excerpt(width)] if self.mark else []
        return "\n".join(
            what + excerpt + [f"{word}: {_part(text)}" for word, text in (("why", self.why), ("fix", self.fix)) if text]
        )


def _part(text: str) -> str:
    """Return a part of a message; what follows a line break in it is indented, so that it is no part of its own."""
    return presentable(text).replace("\n", "\n  ")


class NeoplugError(Exception):
    """An error that ends a command with a message and no traceback."""

    exit_code = 1

    def message(self, width: int | None = None) -> str:
        """Return the message for people; quoted lines are cut to `width` columns, if given."""
        return "\n".join(map(presentable, str(self).split("\n")))


class RunError(NeoplugError):
    """A run that failed after it began: exit 1."""


class DivergenceError(RunError):
    """A run in which a loss, a gradient or a penalty is not finite: exit 1."""


class DiskError(RunError):
    """A file or folder that cannot be written.

    reason  the operating system's message
    """

    def __init__(self, path: pathlib.Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.reason}\nfix: free space there, or choose another place"


class PluginError(RunError):
    """A plugin's hook that failed: it raised an exception, which is the `__cause__`, or its answer is refused.

    place  file:line, and the package with its version; empty where there is no source
    log    the file that holds the traceback; None where there is no run directory yet
    """

    log: pathlib.Path | None = None
    place = ""

    def __init__(
        self, plugin: str, hook: str, error: BaseException, function: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(plugin, hook)
        self.plugin, self.hook = plugin, hook
        self.what = f"the plugin `{plugin}` failed in `{hook}`: {type(error).__name__}: {error}"
        frames = list(walk_tb(error.__traceback__))[2:]  # 0 is `plugin_errors`, 1 the call inside it
        code = getattr(unwrap(function), "__code__", None) if function else None
        own = [found for found in frames if found[0].f_code is code] or frames  # after those of its decorators
        for frame, line in own[:1]:
            self.place = f"{frame.f_code.co_filename}:{line}{of_package(frame.f_globals.get('__name__'))}"

    def __str__(self) -> str:
        more = f"{self.log} holds the traceback" if self.log else "`neoplug --traceback ...` shows the traceback"
        return "\n".join([self.what, *([f"at: {self.place}"] if self.place else []), f"fix: fix the plugin; {more}"])


class AnswerError(PluginError):
    """An answer of a plugin's hook that the hook's rule refuses.

    what      what the plugin did, a sentence without a full stop
    function  the method that implements the hook
    """

    def __init__(self, plugin: str, hook: str, what: str, why: str, fix: str, function: Callable[..., Any]) -> None:
        RunError.__init__(self, plugin, hook)
        self.plugin, self.hook, self.what, self.why, self.fix = plugin, hook, what, why, fix
        self.place = place_of(function)

    def __str__(self) -> str:
        place = [f"at: {self.place}"] if self.place else []
        return "\n".join([self.what, *place, f"why: {self.why}", f"fix: {self.fix}"])


def of_package(module: str | None) -> str:
    """Return " (PACKAGE VERSION)" of the package that registers a plugin of this module; empty for neoplug's."""
    top = (module or "").partition(".")[0]
    for entry in entry_points(group="neoplug"):
        if entry.dist and entry.dist.name != "neoplug" and entry.module.partition(".")[0] == top:
            return f" ({entry.dist.name} {entry.dist.version})"
    return ""


def place_of(function: Callable[..., Any]) -> str:
    """Return `file:line` of a plugin's method, and its package with the version; empty where there is no source."""
    found = definition(function)
    return found and found + of_package(getattr(function, "__module__", None))


def definition(function: Callable[..., Any]) -> str:
    """Return `file:line` of a function's `def`, without its decorators; an empty text where there is no source."""
    code = getattr(unwrap(function), "__code__", None)
    if code is None:
        return ""
    first = code.co_firstlineno  # that of the first decorator
    lines = getlines(code.co_filename)[first - 1 :]
    offset = next((number for number, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def "))), 0)
    return f"{code.co_filename}:{first + offset}"


class OptionError(ValueError):
    """An invalid option, raised in a plugin's `__post_init__`; the message shows the option's line in the recipe.

    For a plain ValueError it shows the line of the first option that the error's text names.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@contextmanager
def plugin_errors(plugin: str, hook: str, function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Raise PluginError in place of an exception (or SystemExit) of a plugin's hook; NeoplugErrors are unchanged.

    function  the method that implements the hook, where that is called
    """
    try:
        yield
    except NeoplugError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(plugin, hook, error, function) from error


def line_in(error: BaseException, file: str) -> int | None:
    """Return the line of the last frame in `file` of an exception's traceback; None without one."""
    return next((line for name, line in reversed(lines_of(error)) if name == file), None)


def innermost(error: BaseException, outside: str = "") -> tuple[str, int, str]:
    """Return file, line and text of the line in which an exception was raised.

    outside  a file whose frames do not count
    """
    file, line = next((file, line) for file, line in reversed(lines_of(error)) if file != outside)
    return file, line, getline(file, line).strip()


def lines_of(error: BaseException) -> list[tuple[str, int]]:
    """Return (file, line) of each frame of an exception's traceback, the outermost first."""
    return [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]


class UsageError(NeoplugError):
    """An invalid command or recipe: exit 2."""

    exit_code = 2


class DamageError(UsageError):
    """A file that is missing or does not hold what neoplug wrote: exit 2.

    what  what is wrong with it, as a predicate: "is empty"
    """

    def __init__(self, file: pathlib.Path, what: str, fix: str) -> None:
        super().__init__(file, what, fix)
        self.file, self.what, self.fix = file, what, fix

    def __str__(self) -> str:
        return f"{self.file} {self.what}\nfix: {self.fix}"


class RecipeError(UsageError):
    """All mistakes of a recipe at once: exit 2, before a model is loaded."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return self.message()

    def message(self, width: int | None = None) -> str:
        """Return the messages of the first SHOWN_PROBLEMS problems, and how many more there are."""
        shown = [problem.message(width) for problem in self.problems[:SHOWN_PROBLEMS]]
        more = len(self.problems) - len(shown)
        return "\n\n".join([*shown, f"and {more:,} more mistake{'s' * (more > 1)}"] if more else shown)


class Interrupted(NeoplugError):
    """A run that saved a checkpoint and stopped on a signal: exit 128 + signal."""

    def __init__(self, signal: int, message: str) -> None:
        self.exit_code = 128 + signal
        super().__init__(message)


class ImmediateStop(BaseException):
    """Raised by a signal outside training. A BaseException, because libraries catch Exception and raise others."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__("stopped by a signal; nothing was to be saved")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean `close`?" for the nearest of `names`, or an empty string.

    The search is slow: it is for a name of at most LONGEST_NAME letters, among at most MOST_NAMES such names.
    """
    if len(name) > LONGEST_NAME:
        return ""
    names = [known for known in islice(names, MOST_NAMES) if len(known) <= LONGEST_NAME]
    folded = {known.lower(): known for known in names}  # a name that differs in case only is the nearest
    close = [folded[name.lower()]] if name.lower() in folded else get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""

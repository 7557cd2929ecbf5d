"""Errors for people: where, what is wrong, why, and the fix. Each knows the exit code that it ends a command with."""

import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from traceback import extract_tb

Path = tuple[str | int, ...]  # a key in a recipe

CUT = " ... "  # stands for the ends of a line that is longer than the screen is wide


@dataclass(frozen=True)
class Mark:
    """A place in a text: 1-based line and column, the length of what is meant, and the whole line."""

    file: str
    line: int
    column: int
    length: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def excerpt(self, width: int | None = None) -> str:
        """Return the line with a caret under what is meant; whole, or what lies around the caret in `width` columns."""
        number = str(self.line)
        text, start, length = self.text, self.column - 1, max(1, self.length)
        room = max(40, width - len(number) - 5 - 2 * len(CUT)) if width else len(text)
        if len(text) > room + 2 * len(CUT):
            first = max(0, min(start - room // 4, len(text) - room))
            text, lead = text[first : first + room], CUT if first else ""
            length = max(1, min(length, first + room - start))
            start += len(lead) - first
            text = lead + text + (CUT if first + room < len(self.text) else "")
        return f"  {number} | {text}\n  {' ' * len(number)} | {' ' * start}{'^' * length}"


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe.

    what    what is wrong, one sentence without a full stop
    why     why it cannot work (may be empty)
    fix     what to do instead (may be empty)
    path    the key in the recipe, as ("adapter", "dora", "r"); the recipe finds the line for it
    mark    the place itself, where it is already known
    """

    what: str
    why: str = ""
    fix: str = ""
    path: Path = ()
    mark: Mark | None = None

    def __str__(self) -> str:
        return self.shown()

    def shown(self, width: int | None = None) -> str:
        """Return the mistake as people read it; its line may be cut to `width` columns, for a terminal."""
        place = f"{self.mark}: " if self.mark else f"{'.'.join(map(str, self.path))}: " if self.path else ""
        lines = [place + self.what]
        if self.mark:
            lines.append(self.mark.excerpt(width))
        lines += [f"{word}: {text}" for word, text in (("why", self.why), ("fix", self.fix)) if text]
        return "\n".join(lines)


class NeoplugError(Exception):
    """What ends a command with a message and no traceback."""

    exit_code = 1

    def shown(self, width: int | None = None) -> str:
        """Return the message; where it quotes long lines, these may be cut to `width` columns, for a terminal."""
        return str(self)


class RunError(NeoplugError):
    """A run that failed on its way: exit 1."""


class DiskError(RunError):
    """A file or folder that a disk does not take.

    reason  in the system's words
    """

    def __init__(self, path: pathlib.Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.reason}\nfix: make room there, or choose another place"


class PluginError(RunError):
    """A hook of a plugin that crashed; what it raised is the `__cause__`.

    log   the file that holds the traceback; None where there is no run directory yet
    """

    log: pathlib.Path | None = None

    def __init__(self, plugin: str, hook: str, error: BaseException) -> None:
        super().__init__(plugin, hook)
        self.plugin = plugin
        self.what = f"the plugin `{plugin}` failed in `{hook}`: {type(error).__name__}: {error}"
        called = extract_tb(error.__traceback__)[2:3]  # behind `blaming` and the call in it
        self.place = f"{called[0].filename}:{called[0].lineno}" if called else ""

    def __str__(self) -> str:
        told = f"{self.log} holds the traceback" if self.log else "`neoplug --traceback ...` shows the traceback"
        return "\n".join([self.what, *([f"at: {self.place}"] if self.place else []), f"fix: mend the plugin; {told}"])


class OptionError(ValueError):
    """A value of an option that a plugin refuses in its `__post_init__`; the recipe's line of the option is shown.

    A plain ValueError does as well: its line is that of the first option that its message names.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@contextmanager
def blaming(plugin: str, hook: str) -> Iterator[None]:
    """Raise PluginError for whatever a plugin's hook raises that is no message of its own, `sys.exit` too."""
    try:
        yield
    except NeoplugError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(plugin, hook, error) from error


def in_file(error: BaseException, file: pathlib.Path | None) -> str:
    """Return " (mine.py, line 3)", as Python says it of a SyntaxError, where an error came through the file's lines."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if file and frame.filename == str(file)]
    return f" ({file.name}, line {lines[-1]})" if file and lines else ""


class UsageError(NeoplugError):
    """A command that asks for what cannot be done: exit 2."""

    exit_code = 2


class RecipeError(UsageError):
    """All mistakes of a recipe at once: exit 2, before a model is loaded."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n\n".join(map(str, self.problems)))

    def shown(self, width: int | None = None) -> str:
        """Return all mistakes; the lines that they quote may be cut to `width` columns, for a terminal."""
        return "\n\n".join(problem.shown(width) for problem in self.problems)


class Interrupted(NeoplugError):
    """A run that saved and stopped because a signal asked for it: exit 128 + signal."""

    def __init__(self, signal: int, message: str) -> None:
        self.exit_code = 128 + signal
        super().__init__(message)


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return "; did you mean `close`?" for the nearest of `names`, or an empty string."""
    folded = {known.lower(): known for known in names}  # a name in other letters is the nearest of all
    close = [folded[name.lower()]] if name.lower() in folded else get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""

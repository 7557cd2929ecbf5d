"""Where the source of a plugin's class has what a problem with the class is about."""

import inspect
import re

from neoplug.errors import Mark


def source_mark(cls: type, what: str) -> Mark | None:
    """Return the source line of the method that the message `what` starts with, else of the class.

    Returns None where there is no source code.
    """
    method = re.match(rf"{re.escape(cls.__qualname__)}\.(\w+)", what)
    try:
        wanted = inspect.getattr_static(cls, method[1]) if method else cls
        wanted = getattr(wanted, "__func__", wanted)
        lines, first = inspect.getsourcelines(wanted)
        file = inspect.getsourcefile(wanted)
    except (TypeError, OSError, AttributeError):
        return None
    offset = next(number for number, line in enumerate(lines) if re.match(r"\s*(def|class|async) ", line))
    text = lines[offset].rstrip()
    column = len(text) - len(text.lstrip())
    return Mark(str(file), first + offset, column + 1, len(text) - column, text)

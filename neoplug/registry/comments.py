"""The comments of a plugin's options in the source of its class; they are what commands and pages say of each option.

An option is documented by the comment at the end of its line: `r: int = 8  # rank of the matrices`.
"""

import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from contextlib import suppress

from neoplug.registry.options import fields_of

LAYOUT = (tokenize.INDENT, tokenize.DEDENT, tokenize.NL)


def comments_of(cls: type) -> dict[str, str]:
    """Return option -> its comment, also for inherited options; an option without one is absent."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        with suppress(OSError, TypeError):  # there is no source
            found |= _end_comments(textwrap.dedent(inspect.getsource(owner)))
    return {name: found[name] for name in fields_of(cls) if name in found}


def _end_comments(source: str) -> Iterator[tuple[str, str]]:
    """Yield name and comment of each annotated name in the body of a class."""
    depth = 0
    line: list[tokenize.TokenInfo] = []  # a logical line, so that a value may span several
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type not in LAYOUT and (line or token.type != tokenize.COMMENT):
            line.append(token)
        if token.type == tokenize.NEWLINE:
            name, second, *_ = line
            comment = " ".join(part.string.lstrip("# ") for part in line if part.type == tokenize.COMMENT)
            if depth == 1 and second.string == ":" and comment:
                yield name.string, comment
            line = []

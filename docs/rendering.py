"""Build hooks of the docs site that need its packages: formulas as MathML, and the aligned lists of docstrings.

Browsers render MathML by themselves, so a page needs no script from another host.
"""

import html
import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ALIGNED = re.compile(r"(\w[\w, *]*?) {2,}(\S.*)")  # `name  meaning` in a docstring, continued by indented lines


def on_page_content(content: str, **_: Any) -> str:
    """Replace each LaTeX formula by MathML."""
    return FORMULA.sub(
        lambda found: convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline"), content
    )


class AlignedLists(Extension):
    """Lets mkdocstrings render the aligned argument lists of docstrings."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return a docstring with its aligned lists, `name  meaning`, as Markdown lists."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        found = ALIGNED.fullmatch(line)
        if found:
            lines += [*([] if inside else [""]), f"- `{found[1]}`: {found[2]}"]
        elif inside and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            lines += [*([""] if inside and line else []), line]
        inside = bool(found) or (inside and line.startswith("    "))
    return "\n".join(lines)

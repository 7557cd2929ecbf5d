"""The page of a reproduction: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from neoplug import __version__
from neoplug.errors.text import escaped, redacted
from neoplug.registry.nested import leaves

if TYPE_CHECKING:
    from neoplug.reproduction.comparison import Comparison, Deviation
    from neoplug.reproduction.reproduce import Reproduction
    from neoplug.studies.summary_comparison import Recomputation

STYLE = """
:root { color-scheme: light dark; --rule: #8884; }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.verdict { border-left: 4px solid #b0450a; padding: .4rem 1rem; font-size: 1.1rem; }
.verdict.yes { border-color: #0a6a9f; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
"""


def page_of(found: Reproduction) -> str:
    """Return the page: the verdict, what differs, the comparison step by step, the reference, and the run's stack."""
    parts = [
        "<h2>What differs here</h2>",
        _table(
            ("", "of the run", "here", "may change"),
            [(one.what, one.locked, one.here, one.may_change) for one in found.differences],
            "Nothing that a result depends on differs.",
        ),
    ]
    if found.comparison is not None:
        parts += ["<h2>Step by step</h2>", *_comparison(found.comparison)]
    if found.judgements:
        parts += ["<h2>The recipe's reference</h2>", *(f"<p>{_text(one)}</p>" for one in found.judgements)]
    stack = {key: found.lock[key] for key in ("versions", "platform", "hardware", "computation")}
    rows = [(".".join(map(str, path)), value) for path, value in leaves(stack)]
    parts += ["<h2>The run's stack</h2>", _table(("", "of the run"), rows)]
    return _page(found, parts)


def page_of_study(found: Recomputation) -> str:
    """Return the page of a study: the verdict, which parts of its summary are equal, and what differs."""
    counts = [(part, lines, equal) for part, (lines, equal) in found.parts.items()]
    changes = [
        (line.part, line.name, change.key, change.before, change.now, change.size)
        for line, changes in found.changes.items()
        for change in changes
    ]
    header = ("part", "line", "value", "of the summary", "of the ledger", "size")
    parts = [
        "<h2>The summary, computed again from the ledger</h2>",
        _table(("part", "lines", "equal"), counts),
        "<h2>What differs</h2>",
        _table(header, changes, "No value of the summary differs."),
        *(f"<p>{_text(one)}</p>" for one in found.contradictions),
    ]
    return _page(found, parts)


def _page(found: Reproduction | Recomputation, parts: Sequence[str]) -> str:
    title = f"Reproduction of {_text(found.source)}"
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="verdict{" yes" if found.exit_code == 0 else ""}">{_text(found.verdict)}</p>\n'
        + "\n".join(parts)
        + f"\n<p>Written by neoplug {__version__}.</p>\n</body>\n</html>\n"
    )


def _comparison(comparison: Comparison) -> list[str]:
    parts = [f"<p>{comparison.equal:,} of {comparison.steps:,} steps are bit-equal.</p>"]
    named: list[tuple[str, Deviation | None]] = [("first", comparison.first), ("largest", comparison.largest)]
    rows = [(name, one.step, one.key, one.before, one.now, one.size) for name, one in named if one is not None]
    return (
        [*parts, _table(("deviation", "step", "value", "of the run", "of the replay", "size"), rows)] if rows else parts
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "") -> str:
    """Return a table, or the sentence `empty` where it has no rows."""
    lines = ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    if not lines:
        return f"<p>{empty}</p>"
    head = "<tr>" + "".join(f'<th scope="col">{name}</th>' for name in header) + "</tr>"
    return "<table>\n" + "\n".join([head, *lines]) + "\n</table>"


def _text(value: Any) -> str:
    return escape(escaped(redacted("(absent)" if value is None else str(value)), keep=""))

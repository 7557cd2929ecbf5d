"""Rows of a SQLite database: those that a query answers, each a map from the query's columns to their values.

    data: {source: {sqlite: {path: chats.db, query: SELECT question AS prompt, reply AS completion FROM chats}}}

The rows come in the order of the query: without ORDER BY, in that of this version of SQLite. They are identified by the
query and the content of the file, with that of its write-ahead log. A list, such as `messages`, is text in JSON.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug import OptionError, Source, did_you_mean, hookimpl

OF_FILE = (  # errors about the file, and not about the query
    *(sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PERM),
)
NO_TABLE = "no such table: "


@dataclass(eq=False)
class SQLite:
    """The rows that a query answers from a SQLite database, which is opened read-only."""

    path: Path  # of the database
    query: str  # one SELECT, which names the columns of the rows

    @hookimpl
    def open_source(self) -> Source:
        """Return the rows of the query, and what identifies them."""
        return Source(self.rows, self.identity)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the query. Raises OptionError where SQLite refuses the file or the query."""
        with closing(self._open()) as database:
            try:
                cursor = database.execute(self.query)
                names = [column[0] for column in cursor.description or ()]
                _check_names(names)
                for row in cursor:
                    yield dict(zip(names, row, strict=True))
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise self._explained(error, database) from error

    def identity(self) -> list[str]:
        """Return the query, the hash of the database, and that of its log of later changes, if there are any."""
        log = self.path.with_name(f"{self.path.name}-wal")
        files = [self.path, *([log] if log.is_file() and log.stat().st_size else [])]
        return [self.query, *map(_sha256, files)]

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # another file could be written
        database.text_factory = _text
        return database

    def _explained(self, error: Exception, database: sqlite3.Connection | None = None) -> OptionError:
        """Return the error of the option that an error of SQLite is about."""
        code = getattr(error, "sqlite_errorcode", None) or 0
        if code & 0xFF in OF_FILE:
            return OptionError("path", f"SQLite cannot read {self.path}: {error}")
        fix = "write one SELECT: the database is not changed" if code & 0xFF == sqlite3.SQLITE_READONLY else ""
        near = ""
        if database and str(error).startswith(NO_TABLE):
            tables = [
                name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
            ]
            near, fix = did_you_mean(str(error).removeprefix(NO_TABLE), tables), f"the tables are {', '.join(tables)}"
        return OptionError("query", f"SQLite refuses the query: {error}{near}" + (f"\nfix: {fix}" if fix else ""))


def _check_names(names: Sequence[str]) -> None:
    """Raise OptionError for a query without columns, and for columns of one name: a row holds one of their values."""
    if not names:
        raise OptionError("query", "the query answers no columns\nfix: write one SELECT")
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        what = f"the query answers several columns named {' and '.join(f'`{name}`' for name in repeated)}"
        raise OptionError("query", f"{what}\nfix: rename all but one with AS")


def _text(stored: bytes) -> str | bytes:
    """Return a text; its bytes where it is not UTF-8, so that the row is counted as one without this text."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

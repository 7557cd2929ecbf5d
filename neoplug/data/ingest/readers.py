"""Readers of data files, one for each format; they yield rows one at a time where the format allows it.

An invalid row does not end the reading: in its place, the reason why it cannot be used is yielded, to be counted.
Every format is also read compressed (`.jsonl.gz`).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from neoplug.data.ingest.arrow import arrow_rows
from neoplug.data.ingest.values import NOT_UTF8, Reason, Row
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

if TYPE_CHECKING:
    import pyarrow.parquet

Only: TypeAlias = "Collection[str] | None"  # columns that may be used; None is all

UNPAIRED = "half a character (an unpaired surrogate)"
ESCAPE = "\\u"  # the only way to write an unpaired surrogate in JSON
PARQUET_ROWS = 1024  # rows in memory at once


def read_file(path: Path, key: Key, only: Only = None) -> Iterator[Row | Reason]:
    """Yield the rows of one data file.

    only    columns that may be used: a fault in another column is none of the row, and parquet does not read it
    raises  RecipeError with the recipe's `key` where the format is unknown, or the whole file cannot be read
    """
    if not format_of(path):
        fix = f"a data file ends in one of {KNOWN_SUFFIXES}"
        raise RecipeError([Problem(f"{path} is not a data file of a known format", fix=fix, path=key)])
    with _read_errors(path, key):
        yield from READERS[_format(path)](path, only)


def column_names_of(path: Path, key: Key) -> list[str]:
    """Return the columns in a parquet file's schema; of other formats none, since only their rows show columns."""
    if not format_of(path).startswith(".parquet"):
        return []
    with _read_errors(path, key), _parquet(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _read_errors(path: Path, key: Key) -> Iterator[None]:
    """Turn the exceptions of formats, compressions and the file system into a RecipeError."""
    try:
        yield
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, zlib.error, lzma.LZMAError) as error:
        raise RecipeError([Problem(f"{path} cannot be read: {error}", path=key)]) from error


def format_of(path: Path) -> str:
    """Return the suffix that selects the reader, with that of a compression (`.jsonl.gz`); empty for no data file."""
    compression = suffix if (suffix := path.suffix.lower()) in COMPRESSIONS else ""
    return _format(path) + compression if _format(path) in READERS else ""


def _format(path: Path) -> str:
    """Return the suffix without that of a compression, in lower case."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def open_file(path: Path) -> BinaryIO:
    """Return the file's bytes, decompressed as its suffix says."""
    return cast(BinaryIO, COMPRESSIONS.get(path.suffix.lower(), _open_plain)(path))


def _open_plain(path: Path) -> BinaryIO:
    return path.open("rb")


def _open_zstandard(path: Path) -> BinaryIO:
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd")))


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}


def _json_rows(path: Path, only: Only) -> Iterator[Row | Reason]:
    """Yield the rows of JSON lines, or of a JSON array or object, which is read into memory as a whole."""
    if _is_lines(path):
        yield from _jsonl_rows(path, only)
        return
    with open_file(path) as file:
        text = file.read().decode("utf-8-sig")
    parsed, escapes = json.loads(text), ESCAPE in text
    yield from (_as_row(row, only, escapes) for row in (parsed if isinstance(parsed, list) else [parsed]))


def _is_lines(path: Path) -> bool:
    """Return whether a file is JSON lines: its first line is a complete object and others follow."""
    with open_file(path) as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, b""), next(filled, b"")
    return bool(second) and isinstance(_parsed(first.removeprefix(b"\xef\xbb\xbf"), ()), dict)


def _jsonl_rows(path: Path, only: Only) -> Iterator[Row | Reason]:
    return (_parsed(line, only) for line in _lines(path) if line.strip())


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines as bytes, so that a line that is not UTF-8 affects no other line; without a byte order mark."""
    with open_file(path) as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(b"\xef\xbb\xbf")


def _parsed(line: bytes, only: Only) -> Row | Reason:
    try:
        text = line.decode().rstrip()
        return _as_row(json.loads(text), only, ESCAPE in text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}"
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:  # too many digits, too deeply nested
        return f"not JSON: {error}"


def _as_row(row: Any, only: Only, has_escapes: bool) -> Row | Reason:
    """Return a JSON value if it is a row; only in a text that has escapes, unpaired surrogates are searched for."""
    if not isinstance(row, dict):
        return f"{type(row).__name__}, but a row is an object of columns"
    return (has_escapes and unpaired_surrogate(row, only)) or row


def unpaired_surrogate(row: Row, only: Only) -> Reason:
    """Return the reason why a row cannot be used if a text in a used column is no Unicode; else an empty text."""
    text = json.dumps(_used(row, only), ensure_ascii=False, default=str)  # other values are refused later
    return UNPAIRED if _has_surrogate(text) else ""


def _used(row: Row, only: Only) -> Row:
    return row if only is None else {name: value for name, value in row.items() if name in only}


def _parquet_rows(path: Path, only: Only) -> Iterator[Row | Reason]:
    with _parquet(path) as file:
        names = [name for name in file.schema_arrow.names if only is None or name in only]
        _validate_column_names(names, only)
        for batch in file.iter_batches(PARQUET_ROWS, columns=names):
            yield from arrow_rows(batch) if names else ({} for _ in range(batch.num_rows))


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Open a parquet file; a compressed one is decompressed in memory, since parquet is not read from its start."""
    from pyarrow.parquet import ParquetFile

    with open_file(path) as opened:
        content = io.BytesIO(opened.read()) if path.suffix.lower() in COMPRESSIONS else opened
        with ParquetFile(content) as file:
            yield file


def _validate_column_names(names: Sequence[str], only: Only) -> None:
    """Raise ValueError where several used columns have one name: a row would contain only one of their values."""
    repeated = [n for n, times in Counter(names).items() if n and times > 1 and (only is None or n in only)]
    if repeated:
        raise ValueError(f"{' and '.join(f'`{name}`' for name in repeated)} names several columns; rename all but one")


def _csv_rows(path: Path, only: Only) -> Iterator[Row | Reason]:
    """Yield rows whose values are unmodified texts: `007` does not become a number."""
    csv.field_size_limit(2**31 - 1)  # documents exceed the default limit of 128 KiB
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CsvLines(file)
        reader = csv.DictReader(lines, strict=True)
        names = reader.fieldnames
        _validate_column_names(names or (), only)
        while names:
            lines.begin_row()
            try:
                yield _csv_row(next(reader), only)
            except StopIteration:
                return
            except csv.Error as error:
                lines.end_broken_row()
                yield f"not CSV: {error}"


class _CsvLines:
    """The lines of a CSV file, to which the reader can return after a broken row.

    An unclosed quote makes the rest of the file part of one row. After `end_broken_row`, only the line with the quote
    is lost, and the lines after it are read again.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._row: list[str] = []  # lines of the current row
        self._again: list[str] = []  # lines to return again, the next one last

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        if self._row or line.strip():  # blank lines between rows belong to no row
            self._row.append(line)
        return line

    def begin_row(self) -> None:
        """Start a new row."""
        self._row.clear()

    def end_broken_row(self) -> None:
        """Continue with the second line of the broken row, as the beginning of a new row."""
        self._again += reversed(self._row[1:])


def _csv_row(row: dict[Any, Any], only: Only) -> Row | Reason:
    if None in row:
        return "more fields than the header"
    return NOT_UTF8 if any(map(_has_surrogate, _used(row, only).values())) else row


def _has_surrogate(text: str | None) -> bool:
    """Return whether the text has an unpaired surrogate, which UTF-8 cannot encode; None is an absent field."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_rows(path: Path, only: Only) -> Iterator[Row | Reason]:
    """Yield one row per paragraph, or one per line in a file without blank lines between its lines."""
    has_paragraphs = sum(filled for filled, _ in groupby(_texts(path), _is_filled)) > 1
    paragraphs = (list(lines) for filled, lines in groupby(_texts(path), _is_filled) if filled)
    lines = ([line] for line in _texts(path) if _is_filled(line))
    for row in paragraphs if has_paragraphs else lines:
        yield NOT_UTF8 if None in row else {"text": "\n".join(map(str, row))}


def _texts(path: Path) -> Iterator[str | None]:
    """Yield lines without trailing whitespace; None for a line that is not UTF-8.

    The first line that is not blank has no leading whitespace either.
    """
    started = False
    for line in _lines(path):
        try:
            text = line.decode().rstrip()
        except UnicodeDecodeError:
            text = None
        yield text if started or text is None else text.lstrip()
        started = started or _is_filled(text)


def _is_filled(line: str | None) -> bool:
    """Return whether a line is not blank; None is a line that is not UTF-8."""
    return line != ""


READERS: dict[str, Callable[[Path, Only], Iterator[Row | Reason]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}
KNOWN_SUFFIXES = f"{', '.join(READERS)}, also compressed ({', '.join(COMPRESSIONS)})"

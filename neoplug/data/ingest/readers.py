"""Readers of data files, one for each format; they yield rows one at a time where the format allows it.

An invalid row does not end the reading: in its place, the reason why it cannot be used is yielded, to be counted.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

Row: TypeAlias = dict[str, Any]
Reason: TypeAlias = str  # why a row cannot be used; equal for all rows with the same fault, since it is counted

NOT_UTF8 = "not UTF-8"
UNPAIRED = "half a character (an unpaired surrogate)"
ESCAPE = "\\u"  # the only way to write an unpaired surrogate in JSON
PARQUET_ROWS = 1024  # rows in memory at once


def read_file(path: Path, key: Key) -> Iterator[Row | Reason]:
    """Yield the rows of one data file.

    raises  RecipeError with the recipe's `key` where the format is unknown, or the whole file cannot be read
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        fix = f"a data file ends in one of {', '.join(READERS)}"
        raise RecipeError([Problem(f"{path} is not a data file of a known format", fix=fix, path=key)])
    try:
        yield from reader(path)
    except (ValueError, OSError, RecursionError, csv.Error) as error:  # errors of pyarrow and json are ValueErrors
        raise RecipeError([Problem(f"{path} cannot be read: {error}", path=key)]) from error


def _json_rows(path: Path) -> Iterator[Row | Reason]:
    """Yield the rows of JSON lines, or of a JSON array or object, which is read into memory as a whole."""
    if _is_lines(path):
        yield from _jsonl_rows(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    parsed, escapes = json.loads(text), ESCAPE in text
    yield from (_as_row(row, escapes) for row in (parsed if isinstance(parsed, list) else [parsed]))


def _is_lines(path: Path) -> bool:
    """Return whether a file is JSON lines: its first line is a complete object and others follow."""
    with path.open("rb") as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, b""), next(filled, b"")
    return bool(second) and isinstance(_parsed(first.removeprefix(b"\xef\xbb\xbf")), dict)


def _jsonl_rows(path: Path) -> Iterator[Row | Reason]:
    return (_parsed(line) for line in _lines(path) if line.strip())


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines as bytes, so that a line that is not UTF-8 affects no other line; without a byte order mark."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(b"\xef\xbb\xbf")


def _parsed(line: bytes) -> Row | Reason:
    try:
        text = line.decode().rstrip()
        return _as_row(json.loads(text), ESCAPE in text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}"
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:  # too many digits, too deeply nested
        return f"not JSON: {error}"


def _as_row(row: Any, has_escapes: bool) -> Row | Reason:
    """Return a JSON value if it is a row; only in a text that has escapes, unpaired surrogates are searched for."""
    if not isinstance(row, dict):
        return f"{type(row).__name__}, but a row is an object of columns"
    return UNPAIRED if has_escapes and _has_surrogate(json.dumps(row, ensure_ascii=False)) else row


def _parquet_rows(path: Path) -> Iterator[Row | Reason]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        _validate_column_names(file.schema_arrow.names)
        for batch in file.iter_batches(PARQUET_ROWS):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from (_arrow_row(batch.slice(number, 1)) for number in range(len(batch)))


def _validate_column_names(names: Sequence[str]) -> None:
    """Raise ValueError where several columns have one name: a row would contain only one of their values."""
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if repeated:
        raise ValueError(f"{' and '.join(f'`{name}`' for name in repeated)} names several columns; rename all but one")


def _arrow_row(row: Any) -> Row | Reason:
    try:
        values: Row = row.to_pylist()[0]
    except UnicodeDecodeError:
        return NOT_UTF8
    return values


def _csv_rows(path: Path) -> Iterator[Row | Reason]:
    """Yield rows whose values are unmodified texts: `007` does not become a number."""
    csv.field_size_limit(2**31 - 1)  # documents exceed the default limit of 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CsvLines(file)
        reader = csv.DictReader(lines, strict=True)
        names = reader.fieldnames
        _validate_column_names(names or ())
        while names:
            lines.begin_row()
            try:
                yield _csv_row(next(reader))
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


def _csv_row(row: dict[Any, Any]) -> Row | Reason:
    if None in row:
        return "more fields than the header"
    return NOT_UTF8 if any(map(_has_surrogate, row.values())) else row


def _has_surrogate(text: str | None) -> bool:
    """Return whether the text has an unpaired surrogate, which UTF-8 cannot encode; None is an absent field."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_rows(path: Path) -> Iterator[Row | Reason]:
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


READERS: dict[str, Callable[[Path], Iterator[Row | Reason]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}

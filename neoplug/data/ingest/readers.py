"""One reader for each format of a data file: a path in, rows out, one at a time where the format allows.

A line that is no row does not end the reading: its place is taken by the reason, a text, to be counted.
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
Fault: TypeAlias = str  # why there is no row: few different texts, since they are counted

NOT_UTF8 = "not UTF-8"
ESCAPE = "\\u"  # JSON can say half a character only so
PARQUET_ROWS = 1024  # in memory at once


def read_file(path: Path, key: Key) -> Iterator[Row | Fault]:
    """Yield the rows of one data file.

    raises  RecipeError at `key` where the format is unknown or the file as a whole is not what its name says
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        fix = f"a data file ends in one of {', '.join(READERS)}"
        raise RecipeError([Problem(f"{path} is no kind of data file that is known", fix=fix, path=key)])
    try:
        yield from reader(path)
    except (ValueError, OSError, RecursionError, csv.Error) as error:  # some libraries' own errors are ValueErrors
        raise RecipeError([Problem(f"{path} cannot be read: {error}", path=key)]) from error


def _json_rows(path: Path) -> Iterator[Row | Fault]:
    """Yield the rows of a JSON array, which is read as a whole, of a single object, or of JSON lines."""
    if _is_lines(path):
        yield from _jsonl_rows(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    parsed, escapes = json.loads(text), ESCAPE in text
    yield from (_as_row(row, escapes) for row in (parsed if isinstance(parsed, list) else [parsed]))


def _is_lines(path: Path) -> bool:
    """Tell whether the first line is a whole object and others follow: JSON lines under the wrong suffix."""
    with path.open("rb") as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, b""), next(filled, b"")
    return bool(second) and isinstance(_parsed(first.removeprefix(b"\xef\xbb\xbf")), dict)


def _jsonl_rows(path: Path) -> Iterator[Row | Fault]:
    return (_parsed(line) for line in _lines(path) if line.strip())


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines as bytes, so that one that is no UTF-8 spoils no other."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(b"\xef\xbb\xbf")


def _parsed(line: bytes) -> Row | Fault:
    try:
        text = line.decode().rstrip()
        return _as_row(json.loads(text), ESCAPE in text)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg}"
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:  # a number of a million digits, a million brackets
        return f"no JSON: {error}"


def _as_row(row: Any, escapes: bool) -> Row | Fault:
    if not isinstance(row, dict):
        return f"{type(row).__name__}, but a row is an object of columns"
    return "half a character" if escapes and _is_broken(json.dumps(row, ensure_ascii=False)) else row


def _parquet_rows(path: Path) -> Iterator[Row | Fault]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    with pyarrow.parquet.ParquetFile(path) as file:
        _validate_tied_weights(file.schema_arrow.names)
        for batch in file.iter_batches(PARQUET_ROWS):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from (_arrow_row(batch.slice(number, 1)) for number in range(len(batch)))


def _validate_tied_weights(names: Sequence[str]) -> None:
    """Raise ValueError where two columns have one name: a row would hold one of them, and nobody knows which."""
    twins = [name for name, times in Counter(names).items() if name and times > 1]
    if twins:
        raise ValueError(f"{' and '.join(f'`{name}`' for name in twins)} names several columns; rename all but one")


def _arrow_row(row: Any) -> Row | Fault:
    try:
        found: Row = row.to_pylist()[0]
    except UnicodeDecodeError:
        return NOT_UTF8
    return found


def _csv_rows(path: Path) -> Iterator[Row | Fault]:
    """Yield rows whose values are all text, as written: an answer of `007` stays so."""
    csv.field_size_limit(2**31 - 1)  # the default refuses fields beyond 128 KiB, which documents exceed
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CsvLines(file)
        reader = csv.DictReader(lines, strict=True)
        names = reader.fieldnames
        _validate_tied_weights(names or ())
        while names:
            lines.begin_row()
            try:
                yield _csv_row(next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                lines.end_broken_row()
                yield f"no CSV: {error}"


class _CsvLines:
    """The lines of a csv file. A quote that nobody closes takes all that follows for its row: here it gets one line."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._row: list[str] = []  # the lines of the row that is being read
        self._again: list[str] = []  # to be read once more, the next one last

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        if self._row or line.strip():  # blank lines between rows are none of a row's
            self._row.append(line)
        return line

    def begin_row(self) -> None:
        self._row.clear()

    def end_broken_row(self) -> None:
        """Let the reading go on with the line behind the row's first."""
        self._again += reversed(self._row[1:])


def _csv_row(row: dict[Any, Any]) -> Row | Fault:
    if None in row:
        return "more fields than the header"
    return NOT_UTF8 if any(map(_is_broken, row.values())) else row


def _is_broken(text: str | None) -> bool:
    try:
        return text is not None and not text.encode()
    except UnicodeEncodeError:
        return True


def _text_rows(path: Path) -> Iterator[Row | Fault]:
    """Yield a row for each paragraph, or for each line where no blank line stands between lines."""
    several = sum(filled for filled, _ in groupby(_texts(path), _is_filled)) > 1
    paragraphs = (list(lines) for filled, lines in groupby(_texts(path), _is_filled) if filled)
    lines = ([line] for line in _texts(path) if _is_filled(line))
    for row in paragraphs if several else lines:
        yield NOT_UTF8 if None in row else {"text": "\n".join(map(str, row))}


def _texts(path: Path) -> Iterator[str | None]:
    """Yield lines without the blanks at their ends, and None for one that is no UTF-8."""
    begun = False
    for line in _lines(path):
        try:
            text = line.decode().rstrip()
        except UnicodeDecodeError:
            text = None
        yield text if begun or text is None else text.lstrip()
        begun = begun or _is_filled(text)


def _is_filled(line: str | None) -> bool:
    return line != ""


READERS: dict[str, Callable[[Path], Iterator[Row | Fault]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}

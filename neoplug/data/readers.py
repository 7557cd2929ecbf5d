"""One reader for each format of a data file: a path in, rows out, one at a time where the format allows."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

Row: TypeAlias = dict[str, Any]


def read_file(path: Path, key: Key) -> Iterator[Row]:
    """Yield the rows of one data file.

    raises  RecipeError at `key` where the format is unknown or the file is not what its name says
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        fix = f"a data file ends in one of {', '.join(READERS)}"
        raise RecipeError([Problem(f"{path} is no kind of data file that is known", fix=fix, path=key)])
    try:
        yield from reader(path)
    except (ValueError, OSError, csv.Error) as error:  # UnicodeDecodeError and pyarrow's errors are ValueErrors
        raise RecipeError([Problem(f"{path} cannot be read: {error}", path=key)]) from error


def _json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON array, of a single object, or of JSON lines under the wrong suffix."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from _jsonl_rows(path)
        return
    for number, row in enumerate(parsed if isinstance(parsed, list) else [parsed], start=1):
        yield _as_row(row, f"item {number}")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _as_row(_parsed(line, number), f"line {number}")


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error


def _as_row(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is {type(row).__name__}, but a row is an object of columns")
    return row


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _csv_rows(path: Path) -> Iterator[Row]:
    """Yield rows whose values are all text, as written: an answer of `007` stays so."""
    csv.field_size_limit(2**31 - 1)  # the default refuses fields beyond 128 KiB, which documents exceed
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines, strict=True):
            if None in row:
                raise ValueError(f"row {row} has more fields than the header")
            yield row


def _text_rows(path: Path) -> Iterator[Row]:
    """Yield a row for each paragraph, or for each line where no blank line stands between lines."""
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    paragraphs = "\n".join(lines).split("\n\n") if "" in lines else lines
    return ({"text": paragraph.strip("\n")} for paragraph in paragraphs if paragraph.strip())


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}

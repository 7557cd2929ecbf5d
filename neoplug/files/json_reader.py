"""Reading of JSON files: whatever is wrong with a file is one error that names it, the line, and what to do."""

import json
import math
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NoReturn

from neoplug.errors import DamageError

LARGEST = 2**26  # bytes of a file


def read_json(file: Path, fix: str) -> dict[str, Any]:
    """Return the map that a JSON file holds.

    fix  what to do where the file is damaged

    Raises DamageError where it is missing, cannot be read, is too large, or does not hold a map of finite numbers.
    """
    try:
        return parse_map(read_text(file))
    except ValueError as error:
        raise DamageError(file, str(error), fix) from error


def read_text(file: Path, largest: int = LARGEST) -> str:
    """Return the text of a file that is not empty. Raises ValueError, which says what is wrong with the file."""
    try:
        if not file.is_file():
            raise ValueError("is no file" if file.exists() else "is missing")
        if (size := file.stat().st_size) > largest:
            raise ValueError(f"has {size:,} bytes, but {largest:,} at most are read")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text at byte {error.start:,}") from error
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ValueError("is empty")
    return text


def parse_map(text: str, first_line: int = 1) -> dict[str, Any]:
    """Return the map that a JSON text holds. Raises ValueError, which says what is wrong and in which line.

    first_line  number of the text's first line in its file
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refused)
    except JSONDecodeError as error:
        line, ends = first_line + error.lineno - 1, error.pos >= len(text.rstrip())
        if ends or error.msg.startswith("Unterminated string"):
            raise ValueError(f"ends in the middle of a value, in line {line}") from error
        raise ValueError(f"is not JSON: {error.msg} in line {line}, column {error.colno}") from error
    except ValueError as error:  # of a number
        raise ValueError(f"has a number that cannot be read, in line {first_line} or later: {error}") from error
    except RecursionError as error:
        raise ValueError(f"is nested too deeply, in line {first_line} or later") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds {_kind(value)} in line {first_line}, where a map was written")
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _kind(value: Any) -> str:
    """Return what JSON calls a value that is no map."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a number"

"""Rows of Arrow tables, which parquet files and the library `datasets` hold, as the values that were stored.

Arrow gives all rows of a column one type. A dict is a struct with the keys of all rows, of which those that a row does
not have are null, so nulls in structs are left out. A value that is stored as JSON or as a map keeps its nulls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from neoplug.data.ingest.values import NOT_UTF8, Reason, Row

if TYPE_CHECKING:
    import pyarrow

Convert = Callable[[Any], Any]  # from the Python value that pyarrow returns to the value that was stored


def arrow_rows(batch: pyarrow.RecordBatch) -> Iterator[Row | Reason]:
    """Yield the rows of a batch; a row with a value that cannot be read is replaced by the reason."""
    converters = {field.name: convert for field in batch.schema if (convert := converter(field.type))}
    try:
        rows = batch.to_pylist()
        for row in rows:
            for name, convert in converters.items():
                row[name] = convert(row[name])
    except (ValueError, OverflowError):  # UnicodeDecodeError, and errors of json and pyarrow, are ValueErrors
        rows = [_row(batch.slice(number, 1), converters) for number in range(len(batch))]
    yield from rows


def _row(batch: pyarrow.RecordBatch, converters: dict[str, Convert]) -> Row | Reason:
    """Return the only row of a batch, or the reason why it cannot be read."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            (value,) = column.to_pylist()
            row[name] = converters[name](value) if name in converters else value
        except UnicodeDecodeError:
            return NOT_UTF8
        except json.JSONDecodeError as error:
            return f"{name} is not JSON: {error.msg}"
        except (ValueError, OverflowError) as error:
            return f"{name} cannot be read: {type(error).__name__}"
    return row


def converter(kind: pyarrow.DataType) -> Convert | None:
    """Return the conversion of a type's values; None where pyarrow returns what was stored."""
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.JsonType):
        return _parsed
    if isinstance(kind, pyarrow.BaseExtensionType):
        return converter(kind.storage_type)
    if types.is_map(kind):
        return _map(converter(kind.item_type))
    if types.is_struct(kind):
        return _struct({field.name: convert for field in kind if (convert := converter(field.type))})
    if types.is_dictionary(kind):
        return converter(kind.value_type)
    is_list = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    if any(is_kind(kind) for is_kind in is_list):
        inner = converter(kind.value_type)
        return _list(inner) if inner else None
    return None


def _parsed(value: str | None) -> Any:
    return None if value is None else json.loads(value)


def _map(convert: Convert | None) -> Convert:
    return lambda pairs: None if pairs is None else {key: convert(value) if convert else value for key, value in pairs}


def _struct(converters: dict[str, Convert]) -> Convert:
    def convert(values: dict[str, Any] | None) -> Any:
        if values is None:
            return None
        return {
            key: converters[key](value) if key in converters else value
            for key, value in values.items()
            if value is not None
        }

    return convert


def _list(convert: Convert) -> Convert:
    return lambda values: None if values is None else [convert(value) for value in values]


def without_none(value: Any) -> Any:
    """Return a value without the keys of dicts that are None, for rows whose types are not known."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value

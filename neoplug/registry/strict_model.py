"""The base of all models that validate a recipe: strict types, known keys, and numbers within limits."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

# The limits of numbers whose type states none: far above what is of use, and products of two fit into 64 bits.
LARGEST = {"int": 10**9, "float": 1e12}


def _limit_numbers(schema: Any, handler: GetCoreSchemaHandler, seen: set[str]) -> None:
    """Limit each number in a schema, and in the dataclasses that it refers to, to LARGEST."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind in LARGEST and not schema.keys() & {"lt", "le"}:
            schema["le"] = LARGEST[kind]
        if kind in LARGEST and not schema.keys() & {"gt", "ge"}:
            schema["ge"] = -LARGEST[kind]
        if kind == "definition-ref" and schema["schema_ref"] not in seen:
            seen.add(schema["schema_ref"])
            _limit_numbers(handler.resolve_ref_schema(schema), handler, seen)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ():
        _limit_numbers(part, handler, seen)


class StrictModel(BaseModel):
    """Strict: no unknown keys, no text for numbers, no NaN, no number beyond LARGEST."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema with the limits of numbers."""
        schema = handler(source)
        _limit_numbers(schema, handler, set())
        return schema

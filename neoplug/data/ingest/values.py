"""What a reader yields: rows, or the reason in place of a row that cannot be used."""

from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Reason: TypeAlias = str  # why a row cannot be used; equal for all rows with the same fault, since it is counted

NOT_UTF8 = "not UTF-8"

"""metrics.jsonl of a run: a line for each optimizer step, appended while it trains, cut when it is resumed."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug.files import disk_errors, write_atomically
from neoplug.runs.run_files import digest_of, lines_of, read_metrics


@dataclass(frozen=True)
class MetricsFile:
    """A file of JSON lines, one for each optimizer step, floats in full precision."""

    path: Path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append in one write and wait until it is on disk: a checkpoint written next relies on these lines."""
        text = "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines)
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return all lines, without a last one that is incomplete because the process was killed.

        Raises:
            DamageError: a line is damaged.
        """
        return read_metrics(self.path)

    def sha256(self) -> str:
        """Return the hash of all complete lines."""
        return digest_of(lines_of(self.path))

    def cut(self, after_step: int) -> None:
        """Keep the lines of the first `after_step` steps alone."""
        if self.path.exists():
            write_atomically(self.path, "".join(f"{line}\n" for line in lines_of(self.path)[:after_step]))


def finite(value: Any) -> Any:
    """Return the value with None in place of infinity and NaN, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

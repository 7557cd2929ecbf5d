"""The ledger of a study: a line of JSON for each job that is done; a job without a line is not done."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neoplug.errors import DamageError
from neoplug.files import disk_errors, lock

Status = Literal["completed", "diverged", "failed", "out_of_memory", "refused"]
Numbers = dict[str, float]  # NAME: of the test half, validation_NAME: of the other; what is not finite is absent
FIX = "restore it from a copy; or remove that line, and its job runs again"


class Row(BaseModel):
    """One line: a job, how it ended, and what it measured. A measurement that does not exist is null or empty."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str = Field(description="of the job")
    arm: dict[str, str] = Field(description="axis to level")
    kind: Literal["search", "test"] = Field(description="`search` chooses the searched keys, `test` is reported")
    seed: int = Field(description="of the run")
    trial: dict[str, Any] = Field(description="searched key to value")
    status: Status = Field(description="how the job ended")
    reason: str = Field(default="", description="why it did not complete")
    values: Numbers = Field(default={}, description="measures of the trained student")
    references: dict[str, Numbers] = Field(default={}, description="the same of `untrained`, and of `teacher`")
    trainable_parameters: int | None = Field(default=None, description="parameters of the student that were trained")
    total_parameters: int | None = Field(default=None, description="parameters of the student with its adapter")
    steps: int | None = Field(default=None, description="optimizer steps done")
    tokens: int | None = Field(default=None, description="tokens trained on")
    answer_tokens: int | None = Field(default=None, description="tokens with a loss")
    seconds: float | None = Field(default=None, description="wall time of the run")
    peak_memory_bytes: int | None = Field(default=None, description="peak memory of its process")
    curve: dict[str, list[float | None]] = Field(
        default={}, description="`tokens` trained on, and the training `loss`, both after each of at most 120 steps"
    )
    run: str = Field(default="", description="its folder, relative to the study's; it may be removed since")
    version: str = Field(description="of neoplug")
    finished: str = Field(description="time, UTC")


class Ledger:
    """A ledger file and its rows by id, as far as they were read. Several processes may append to it.

    A last line that a killed process cut is ignored, and overwritten by the next one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Row] = {}
        self._end = 0  # of the lines that were read, in bytes
        self._lines = 0

    def refresh(self) -> list[Row]:
        """Read the lines that were added since the last call; return their rows. Raises DamageError."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._end)
            whole, newline, _ = file.read().rpartition(b"\n")
        added = [self._parse(line, self._lines + number) for number, line in enumerate(whole.split(b"\n"), 1) if line]
        self._end += len(whole + newline)
        self._lines += whole.count(b"\n") + len(newline)
        self.rows |= {row.id: row for row in added}
        return added

    def append(self, row: Row) -> None:
        """Write a row, and wait until it is on disk; a job that has one keeps it. Raises DiskError."""
        line = row.model_dump_json(exclude_defaults=True) + "\n"
        with lock(self.file), disk_errors(self.file):
            self.refresh()
            if row.id in self.rows:
                return
            with self.file.open("r+b" if self.file.exists() else "wb") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            self.rows[row.id] = row
            self._end += len(line.encode())
            self._lines += 1

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            return Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            what = f"has a line {number} that neoplug did not write: {place and f'`{place}`: '}{first['msg']}"
            raise DamageError(self.file, what, FIX) from error

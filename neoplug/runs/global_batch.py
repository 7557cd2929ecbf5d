"""The global batch: the rows of an optimizer step, and how they are dealt to processes and micro-batches.

A step's rows depend on their number alone (`data.sampler`), so a resumed run may deal them otherwise.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from neoplug.errors import UsageError
from neoplug.recipe import Train


class GlobalBatch(BaseModel):
    """How the rows of a step are dealt."""

    model_config = ConfigDict(frozen=True)

    ranks: int = Field(description="processes that train")
    per_device_train_batch_size: int = Field(description="rows of a micro-batch")
    gradient_accumulation_steps: int = Field(description="micro-batches of a process in a step")

    @classmethod
    def of(cls, train: Train, ranks: int) -> Self:
        """Return that of a recipe's section `train` on so many processes."""
        return cls(
            ranks=ranks,
            per_device_train_batch_size=train.per_device_train_batch_size,
            gradient_accumulation_steps=train.gradient_accumulation_steps,
        )

    @property
    def rows(self) -> int:
        """The number of rows of a step; the last of an epoch may have fewer."""
        return self.ranks * self.per_device_train_batch_size * self.gradient_accumulation_steps

    def __str__(self) -> str:
        size, micro_batches = self.per_device_train_batch_size, self.gradient_accumulation_steps
        of_rows = f"{size} row{'s' * (size > 1)}"
        return f"{self.ranks} x {micro_batches} micro-batch{'es' * (micro_batches > 1)} of {of_rows}"

    def validate_same_rows(self, begun: Self, run: Path) -> None:
        """Refuse to resume `run`, which began with the global batch `begun`, with another number of rows.

        Raises:
            UsageError: the numbers differ.
        """
        if self.rows == begun.rows:
            return
        raise UsageError(
            f"{run} trains on {begun.rows} rows in each step (processes x micro-batches: {begun}), and here a step has "
            f"{self.rows} ({self})\n"
            "why: with other rows in its steps it would be another run\n"
            f"fix: {self._fix(begun.rows)}, or start a new run"
        )

    def _fix(self, rows: int) -> str:
        """Return how these processes can train on so many rows in a step."""
        if rows % self.ranks:
            return f"resume on a number of processes that divides {rows}"
        of_rank, size = rows // self.ranks, self.per_device_train_batch_size
        if of_rank % size == 0:
            return f"set train.gradient_accumulation_steps={of_rank // size}"
        return f"set train.per_device_train_batch_size=1 and train.gradient_accumulation_steps={of_rank}"


class Dealt(GlobalBatch):
    """How the rows of a step were dealt from a step on."""

    step: int = Field(description="optimizer steps done before")

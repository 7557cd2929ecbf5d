"""The token store: tokenised documents in memory-mapped files; only the documents that are accessed are read.

D documents, those of the R training rows first, row by row, then the held-out ones. T tokens: for each document the
student's, followed by the teacher's where it has its own chat template.

    input_ids  [T] int32
    loss_mask  [T] bool
    starts     [D + 1] int64: where each document starts in these two, and T
    ends       [D] int64: where the student's tokens of each document end
    row        [D] int64: index of each document's row, as `Document.row`
    bounds     [R + 1] int64: index of the first document of each training row, and of the first held-out document
    used       [U] int64: every token id that both models read, ascending
    used_by_student, used_by_teacher  [U] int64: every token id that this model reads, ascending
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from neoplug.data.batch import Document
from neoplug.files import read_json, write_atomically

IDS_USED = ("used", "used_by_student", "used_by_teacher")
ARRAYS = ("input_ids", "loss_mask", "starts", "ends", "row", "bounds", *IDS_USED)
RECORD = "neoplug.json"  # file with the report and fingerprint of the store

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are computed on each access and not cached."""

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._indices, self._item = range(length), item

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        selected = self._indices[index]
        return self._item(selected) if isinstance(selected, int) else [self._item(one) for one in selected]


class Store:
    """A token store, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Map the arrays of an intact folder into memory."""
        self.record = read_json(folder / RECORD, f"remove {folder}")
        mapped = {name: np.load(file_of(folder, name), mmap_mode="r").view(np.ndarray) for name in ARRAYS}
        self.input_ids, self.loss_mask, self.used = mapped["input_ids"], mapped["loss_mask"], mapped["used"]
        self.used_by = {"student": mapped["used_by_student"], "teacher": mapped["used_by_teacher"]}
        self.starts, self.ends = mapped["starts"], mapped["ends"]
        self.row, self.bounds = mapped["row"], mapped["bounds"]
        self._training_documents = int(self.bounds[-1])

    @property
    def rows(self) -> Sequence[list[Document]]:
        """Return the training rows."""
        return Lazy(len(self.bounds) - 1, lambda row: list(map(self.document, range(*self.bounds[row : row + 2]))))

    @property
    def held_out(self) -> Sequence[Document]:
        """Return the held-out documents."""
        first = self._training_documents
        return Lazy(len(self.row) - first, lambda index: self.document(first + index))

    @property
    def row_lengths(self) -> np.ndarray:
        """Return [R] int64: the student's tokens of each training row."""
        before = np.concatenate([[0], np.cumsum(self.ends - self.starts[:-1])])
        return np.diff(before[self.bounds])

    @property
    def longest(self) -> dict[str, int]:
        """Return `student` and `teacher` -> tokens of the longest document as this model reads it."""
        student, teacher = self.ends - self.starts[:-1], self.starts[1:] - self.ends
        return {"student": int(student.max()), "teacher": int(np.where(teacher > 0, teacher, student).max())}

    def document(self, index: int) -> Document:
        """Return a copy of the document at `index`, from 0 to D - 1."""
        whole = slice(*self.starts[index : index + 2])
        ids, mask = self.input_ids[whole].astype(np.int64), self.loss_mask[whole].copy()
        length = int(self.ends[index] - whole.start)
        number = index if index < self._training_documents else index - self._training_documents
        document = Document(ids[:length], mask[:length], int(self.row[index]), number=number)
        if len(ids) == length:
            return document
        return replace(document, teacher_ids=ids[length:], teacher_loss_mask=mask[length:])


def file_of(folder: Path, name: str) -> Path:
    """Return the path of the file of the array `name`."""
    return folder / f"{name}.npy"


def write_record(folder: Path, **values: Any) -> None:
    """Write `values` to RECORD."""
    write_atomically(folder / RECORD, json.dumps({"format": 1, **values}) + "\n")

"""Tokenised documents on disk, memory-mapped: of a million rows only those that are asked for come to memory.

D documents, those of the R training rows first, row by row, then those held out. T tokens: each document's own, and
behind them those that the teacher reads instead, where it has a prompt of its own.

    input_ids  [T] int32
    loss_mask  [T] bool
    starts     [D + 1] int64: where in these each document begins
    ends       [D] int64: where its own tokens end
    row        [D] int64: its row in the source
    bounds     [R + 1] int64: the first document of each training row, and of what is held out
    used       [U] int64: every token that both models read, ascending
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from neoplug.data.batch import Document
from neoplug.files import content_hash, sha256_of, write_atomically

logger = logging.getLogger("neoplug")

ARRAYS = ("input_ids", "loss_mask", "starts", "ends", "row", "bounds", "used")
RECORD = "neoplug.json"  # what no array says, and the arrays' own hashes

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for, and kept by nobody."""

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._numbers, self._item = range(length), item

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        numbers = self._numbers[index]
        return self._item(numbers) if isinstance(numbers, int) else [self._item(number) for number in numbers]


class Store:
    """One folder of tokens, opened."""

    def __init__(self, folder: Path) -> None:
        """Map the arrays; raise ValueError, KeyError or OSError where they are not what was written."""
        whole = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        self.record: dict[str, Any] = whole["record"]
        if content_hash(self.record) != whole["sha256"]:
            raise ValueError(f"{RECORD} is not what was written")
        for name in ARRAYS:
            if sha256_of(file_of(folder, name)) != self.record["sha256"][name]:
                raise ValueError(f"{name} is not what was written")
        mapped = {name: np.load(file_of(folder, name), mmap_mode="r").view(np.ndarray) for name in ARRAYS}
        self.input_ids, self.loss_mask, self.used = mapped["input_ids"], mapped["loss_mask"], mapped["used"]
        self.starts, self.ends = mapped["starts"], mapped["ends"]
        self.row, self.bounds = mapped["row"], mapped["bounds"]
        self._training_documents = int(self.bounds[-1])

    @property
    def rows(self) -> Sequence[list[Document]]:
        """Return the training rows."""
        return Lazy(len(self.bounds) - 1, lambda row: list(map(self.document, range(*self.bounds[row : row + 2]))))

    @property
    def held_out(self) -> Sequence[Document]:
        """Return the documents that are held out."""
        first = self._training_documents
        return Lazy(len(self.row) - first, lambda number: self.document(first + number))

    @property
    def row_lengths(self) -> np.ndarray:
        """Return [R] int64: how many tokens each training row has."""
        before = np.concatenate([[0], np.cumsum(self.ends - self.starts[:-1])])
        return np.diff(before[self.bounds])

    @property
    def longest(self) -> dict[str, int]:
        """Return the tokens of the longest document as the `student` reads it, and as the `teacher` does."""
        own, other = self.ends - self.starts[:-1], self.starts[1:] - self.ends
        return {"student": int(own.max()), "teacher": int(np.where(other > 0, other, own).max())}

    def document(self, index: int) -> Document:
        """Return a copy of document `index` of the D."""
        whole = slice(*self.starts[index : index + 2])
        ids, mask = self.input_ids[whole].astype(np.int64), self.loss_mask[whole].copy()
        own = int(self.ends[index] - whole.start)
        number = index if index < self._training_documents else index - self._training_documents
        document = Document(ids[:own], mask[:own], int(self.row[index]), number=number)
        if len(ids) == own:
            return document
        return replace(document, teacher_ids=ids[own:], teacher_loss_mask=mask[own:])


def file_of(folder: Path, name: str) -> Path:
    """Return the file of one of the arrays."""
    return folder / f"{name}.npy"


def write_record(folder: Path, **facts: Any) -> None:
    """Write what no array says, and the hashes of the arrays: the last file of a store."""
    record = {"format": 1, **facts, "sha256": {name: sha256_of(file_of(folder, name)) for name in ARRAYS}}
    whole = {"record": record, "sha256": content_hash(record)}
    write_atomically(folder / RECORD, json.dumps(whole) + "\n")


def open_store(folder: Path) -> Store | None:
    """Return the store in `folder`; None where there is none, or where it is damaged, with a word."""
    if not folder.exists():
        return None
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the stored tokens in %s are damaged (%s); they are made anew", folder, error)
        return None

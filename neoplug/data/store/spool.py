"""Documents on their way to a store: written as they come, read again in the order of their rows.

Which rows are held out, and which documents share a row, is known only when all of them were seen. So tokens wait in a
file; of each row and each document a few numbers stay in memory, about 60 to 120 bytes.
"""

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.lengths import Fitted
from neoplug.data.ingest.report import Side
from neoplug.data.split import DIGEST
from neoplug.data.store.token_files import file_of

TOKEN, FLAG = np.dtype("<i4"), np.dtype(bool)
BYTES = TOKEN.itemsize + FLAG.itemsize  # of a token
BUFFER = 2**20


class Spool:
    """Documents in the order in which they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=BUFFER)
        self._digests = bytearray()
        self._documents, self._lost, self._cut, self._refused = array("q"), array("q"), array("b"), array("b")
        self._own, self._teachers, self._answers, self._source_rows = array("q"), array("q"), array("q"), array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, digest: str, fitted: Fitted | None, first: int = 0) -> None:
        """Take one row: what it became, or None where it was refused; `first` is added to its number."""
        self._digests += bytes.fromhex(digest)[:DIGEST]
        self._documents.append(len(fitted.documents) if fitted else 0)
        self._lost.append(fitted.lost_answer_tokens if fitted else 0)
        self._cut.append(bool(fitted and fitted.cut))
        self._refused.append(fitted is None)
        for document in fitted.documents if fitted else ():
            self._add(document, first + document.row)

    def _add(self, document: Document, source_row: int) -> None:
        texts = _texts(document)
        self._own.append(len(document))
        self._teachers.append(sum(map(len, texts[1:])))
        self._answers.append(document.answer_tokens)
        self._source_rows.append(source_row)
        self._file.writelines(text.input_ids.astype(TOKEN).tobytes() for text in texts)
        self._file.writelines(text.loss_mask.astype(FLAG).tobytes() for text in texts)

    @property
    def digests(self) -> np.ndarray:
        """Return [rows] bytes: the beginning of each row's content hash."""
        return np.frombuffer(bytes(self._digests), f"S{DIGEST}")

    @property
    def lengths(self) -> np.ndarray:
        """Return [documents] int64: tokens of each, the longer of what the student and the teacher read."""
        return np.maximum(self._own, self._teachers)

    @property
    def rows(self) -> int:
        """Count the rows that were taken."""
        return len(self._documents)

    def documents_of(self, rows: np.ndarray) -> np.ndarray:
        """Return [documents] int64: the numbers of those of the rows that are True in `rows` [rows]."""
        return np.flatnonzero(np.repeat(rows, self._documents))

    def side(self, chosen: np.ndarray | slice) -> Side:
        """Count what became of some rows, [rows] bool or a slice of them; a refused one became nothing."""
        rows = np.zeros(self.rows, bool)
        rows[chosen] = np.array(self._refused)[chosen] == 0
        documents, kept = np.array(self._documents)[rows], self.documents_of(rows)
        return Side(
            rows=int(rows.sum()),
            documents=len(kept),
            tokens=int(np.array(self._own)[kept].sum()),
            answer_tokens=int(np.array(self._answers)[kept].sum()),
            teacher_tokens=int(np.array(self._teachers)[kept].sum()),
            rows_cut=int(np.array(self._cut)[rows].sum()),
            answer_tokens_lost=int(np.array(self._lost)[rows].sum()),
            rows_without_answer=int((documents == 0).sum()),
            rows_in_windows=int((documents > 1).sum()),
        )

    def write(self, folder: Path, order: np.ndarray, bounds: np.ndarray) -> str:
        """Write the arrays of a store; return the fingerprint of what they hold.

        order   [D] int64: the numbers of the documents in the order of their rows, then of those held out
        bounds  [R + 1] int64: where in it each training row begins, and what is held out
        """
        own, teachers = np.array(self._own)[order], np.array(self._teachers)[order]
        starts = np.concatenate([[0], np.cumsum(own + teachers)])
        sizes, documents = np.diff(bounds, append=len(order)), self._read(order)
        fingerprint, used = Fingerprint(), np.zeros(0, bool)
        with (
            _array_file(folder, "input_ids", TOKEN, starts[-1]) as tokens,
            _array_file(folder, "loss_mask", FLAG, starts[-1]) as flags,
        ):
            for size in map(int, sizes):
                fingerprint.begin(size)
                for document in islice(documents, size):
                    fingerprint.add(document)
                    for text in _texts(document):
                        tokens.write(text.input_ids.data)
                        flags.write(text.loss_mask.data)
                    alike = document.teacher_ids is None  # else only the answers are
                    used = _marked(used, document.input_ids[alike | document.loss_mask])
        rows = np.array(self._source_rows)[order]
        rest = {"starts": starts, "ends": starts[:-1] + own, "row": rows, "bounds": bounds}
        for name, values in {**rest, "used": np.flatnonzero(used)}.items():
            np.save(file_of(folder, name), values.astype(np.int64))
        return fingerprint.hexdigest()

    def _read(self, order: np.ndarray) -> Iterator[Document]:
        """Yield documents by their numbers."""
        self._file.flush()
        sizes = np.add(self._own, self._teachers)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        with self._path.open("rb", buffering=0) as file:
            for number in map(int, order):
                file.seek(int(starts[number]) * BYTES)
                size, own = int(sizes[number]), self._own[number]
                found = file.read(size * BYTES)
                ids, scored = np.frombuffer(found, TOKEN, size), np.frombuffer(found, FLAG, size, size * TOKEN.itemsize)
                teacher = (ids[own:], scored[own:]) if size > own else (None, None)
                yield Document(ids[:own], scored[:own], self._source_rows[number], *teacher)


class Fingerprint:
    """The sha256 of documents' tokens and masks, and of where documents and rows begin."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, documents: int) -> None:
        """Take the beginning of a row of so many documents."""
        self._digest.update(documents.to_bytes(8, "little"))

    def add(self, document: Document) -> None:
        """Take the row's next document."""
        self._digest.update(len(document).to_bytes(8, "little"))
        self._digest.update(document.input_ids.astype("<i8").data)
        self._digest.update(document.loss_mask.astype("u1").data)
        if document.teacher_ids is not None:
            alone = Fingerprint()
            alone.begin(1)
            alone.add(document.as_teacher())
            self._digest.update(alone.hexdigest().encode())

    def hexdigest(self) -> str:
        """Return the hash of all that was taken, in hexadecimal."""
        return self._digest.hexdigest()


def _texts(document: Document) -> tuple[Document, ...]:
    """Return the document, and what the teacher reads instead, where that is something else."""
    return (document,) if document.teacher_ids is None else (document, document.as_teacher())


def _array_file(folder: Path, name: str, dtype: np.dtype, length: int) -> Any:
    """Open the file of an array that is written a piece at a time."""
    file = file_of(folder, name).open("wb", buffering=BUFFER)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (int(length),)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _marked(used: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Mark tokens as used, in place where they have a place."""
    highest = int(tokens.max())
    if highest >= len(used):
        used = np.concatenate([used, np.zeros(highest + 1, bool)])
    used[tokens] = True
    return used

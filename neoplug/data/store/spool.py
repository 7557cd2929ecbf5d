"""The spool: a temporary file of documents, written in the order of the sources and read in the order of the store.

Splitting and packing can only start when all rows are tokenised. Until then, the tokens are in this file, and memory
holds a few numbers for each row and document, about 60 to 120 bytes.
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
from neoplug.data.ingest.report import SplitCounts
from neoplug.data.split import DIGEST
from neoplug.data.store.token_files import file_of

TOKEN, FLAG = np.dtype("<i4"), np.dtype(bool)
BYTES = TOKEN.itemsize + FLAG.itemsize  # of a token with its loss mask
BUFFER = 2**20


class Spool:
    """A temporary file of documents, deleted on exit; the counts of rows and documents are in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=BUFFER)
        self._digests = bytearray()
        self._documents, self._lost, self._cut, self._dropped = array("q"), array("q"), array("b"), array("b")
        self._lengths, self._teacher_lengths = array("q"), array("q")
        self._answers, self._source_rows = array("q"), array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, digest: str, fitted: Fitted | None, first_row: int = 0) -> None:
        """Add a row with its documents.

        digest     the content hash of the row, in hexadecimal
        fitted     the documents of the row; None where the row is dropped
        first_row  index of the source's first row among the rows of all sources; added to the documents' `row`
        """
        self._digests += bytes.fromhex(digest)[:DIGEST]
        self._documents.append(len(fitted.documents) if fitted else 0)
        self._lost.append(fitted.lost_answer_tokens if fitted else 0)
        self._cut.append(bool(fitted and fitted.cut))
        self._dropped.append(fitted is None)
        for document in fitted.documents if fitted else ():
            self._add(document, first_row + document.row)

    def _add(self, document: Document, source_row: int) -> None:
        texts = _texts(document)
        self._lengths.append(len(document))
        self._teacher_lengths.append(sum(map(len, texts[1:])))
        self._answers.append(document.answer_tokens)
        self._source_rows.append(source_row)
        self._file.writelines(text.input_ids.astype(TOKEN).tobytes() for text in texts)
        self._file.writelines(text.loss_mask.astype(FLAG).tobytes() for text in texts)

    @property
    def digests(self) -> np.ndarray:
        """Return [rows] of DIGEST bytes: the beginning of each row's content hash."""
        return np.frombuffer(bytes(self._digests), f"S{DIGEST}")

    @property
    def max_text_lengths(self) -> np.ndarray:
        """Return [documents] int64: the tokens of the student's or the teacher's text, whichever is longer."""
        return np.maximum(self._lengths, self._teacher_lengths)

    @property
    def rows(self) -> int:
        """Return the number of rows added."""
        return len(self._documents)

    def documents_of(self, rows: np.ndarray) -> np.ndarray:
        """Return [documents] int64: the indices of the documents whose row is True in `rows`, [rows] bool."""
        return np.flatnonzero(np.repeat(rows, self._documents))

    def split_counts(self, chosen: np.ndarray | slice) -> SplitCounts:
        """Return the counts of the chosen rows without the dropped ones; `chosen` is [rows] bool, or a slice."""
        rows = np.zeros(self.rows, bool)
        rows[chosen] = np.array(self._dropped)[chosen] == 0
        documents, kept = np.array(self._documents)[rows], self.documents_of(rows)
        return SplitCounts(
            rows=int(rows.sum()),
            documents=len(kept),
            tokens=int(np.array(self._lengths)[kept].sum()),
            answer_tokens=int(np.array(self._answers)[kept].sum()),
            teacher_tokens=int(np.array(self._teacher_lengths)[kept].sum()),
            rows_cut=int(np.array(self._cut)[rows].sum()),
            answer_tokens_lost=int(np.array(self._lost)[rows].sum()),
            rows_without_answer=int((documents == 0).sum()),
            rows_in_windows=int((documents > 1).sum()),
        )

    def write(self, folder: Path, order: np.ndarray, bounds: np.ndarray) -> str:
        """Write the arrays of a store; return the fingerprint of their content.

        order   [D] int64: indices of documents in the order of the store: the training rows', then the held-out ones
        bounds  [R + 1] int64: where each training row starts in `order`, and where the held-out documents start
        """
        lengths, teacher_lengths = np.array(self._lengths)[order], np.array(self._teacher_lengths)[order]
        starts = np.concatenate([[0], np.cumsum(lengths + teacher_lengths)])
        sizes, documents = np.diff(bounds, append=len(order)), self._read(order)
        fingerprint, of_same_texts = Fingerprint(), TokenSet()
        used = {name: TokenSet() for name in ("used", "used_by_student", "used_by_teacher")}
        with (
            _array_file(folder, "input_ids", TOKEN, starts[-1]) as tokens,
            _array_file(folder, "loss_mask", FLAG, starts[-1]) as masks,
        ):
            for size in map(int, sizes):
                fingerprint.begin(size)
                for document in islice(documents, size):
                    fingerprint.add(document)
                    for text in _texts(document):
                        tokens.write(text.input_ids.data)
                        masks.write(text.loss_mask.data)
                    if document.teacher_ids is None:
                        of_same_texts.mark(document.input_ids)
                        continue
                    used["used"].mark(document.input_ids[document.loss_mask])  # all others are not read by both
                    used["used_by_student"].mark(document.input_ids)
                    used["used_by_teacher"].mark(document.teacher_ids)
        arrays = {
            "starts": starts,
            "ends": starts[:-1] + lengths,
            "row": np.array(self._source_rows)[order],
            "bounds": bounds,
            **{name: np.union1d(tokens.ids, of_same_texts.ids) for name, tokens in used.items()},
        }
        for name, values in arrays.items():
            np.save(file_of(folder, name), values.astype(np.int64))
        return fingerprint.hexdigest()

    def _read(self, order: np.ndarray) -> Iterator[Document]:
        """Yield the documents with these indices, in this order."""
        self._file.flush()
        sizes = np.add(self._lengths, self._teacher_lengths)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        with self._path.open("rb", buffering=0) as file:
            for index in map(int, order):
                file.seek(int(starts[index]) * BYTES)
                size, length = int(sizes[index]), self._lengths[index]
                read = file.read(size * BYTES)
                ids, mask = np.frombuffer(read, TOKEN, size), np.frombuffer(read, FLAG, size, size * TOKEN.itemsize)
                teacher = (ids[length:], mask[length:]) if size > length else (None, None)
                yield Document(ids[:length], mask[:length], self._source_rows[index], *teacher)


class Fingerprint:
    """The sha256 of the documents' tokens and masks, and of the number of documents in each row."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, documents: int) -> None:
        """Begin a row with this number of documents."""
        self._digest.update(documents.to_bytes(8, "little"))

    def add(self, document: Document) -> None:
        """Add the next document of the row."""
        self._digest.update(len(document).to_bytes(8, "little"))
        self._digest.update(document.input_ids.astype("<i8").data)
        self._digest.update(document.loss_mask.astype("u1").data)
        if document.teacher_ids is not None:
            teacher = Fingerprint()
            teacher.begin(1)
            teacher.add(document.as_teacher())
            self._digest.update(teacher.hexdigest().encode())

    def hexdigest(self) -> str:
        """Return the hash of everything added, in hexadecimal."""
        return self._digest.hexdigest()


def _texts(document: Document) -> tuple[Document, ...]:
    """Return the student's text, and the teacher's where it has its own, each as the student's text of a document."""
    return (document,) if document.teacher_ids is None else (document, document.as_teacher())


def _array_file(folder: Path, name: str, dtype: np.dtype, length: int) -> Any:
    """Write the header of an array's .npy file; return the file, open for writing the values in pieces."""
    file = file_of(folder, name).open("wb", buffering=BUFFER)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (int(length),)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


class TokenSet:
    """A set of token ids."""

    def __init__(self) -> None:
        self._marked = np.zeros(0, bool)

    def mark(self, tokens: np.ndarray) -> None:
        """Add the ids in `tokens`."""
        try:
            self._marked[tokens] = True
        except IndexError:  # an id beyond the end
            self._marked = np.concatenate([self._marked, np.zeros(int(tokens.max()) + 1, bool)])
            self._marked[tokens] = True

    @property
    def ids(self) -> np.ndarray:
        """Return the ids, ascending."""
        return np.flatnonzero(self._marked)

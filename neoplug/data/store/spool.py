"""The spool: temporary files of documents, written in the order of the sources and read in the order of the store.

Splitting and packing can only start when all rows are tokenised. Until then, the tokens are in these files, and memory
holds a few numbers for each row and document, about 60 to 120 bytes.
"""

import hashlib
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from neoplug.data.encode.lengths import Fitted, ranges
from neoplug.data.ingest.report import SplitCounts
from neoplug.data.split import DIGEST
from neoplug.data.store.token_files import IDS_USED, file_of

TOKEN, FLAG = np.dtype("<i4"), np.dtype(bool)
BUFFER = 2**20
TOKENS_AT_ONCE = 2**20  # read and written at once, beside the rest of a document


class Spool:
    """Two temporary files of tokens and loss masks, deleted on exit; the counts of rows and documents are in memory."""

    def __init__(self, folder: Path) -> None:
        self._paths = folder / "spool_ids", folder / "spool_mask"
        self._ids, self._mask = (path.open("wb", buffering=BUFFER) for path in self._paths)
        self._digests = bytearray()
        self._documents, self._lost, self._cut, self._dropped = array("q"), array("q"), array("b"), array("b")
        self._lengths, self._teacher_lengths = array("q"), array("q")
        self._answers, self._source_rows = array("q"), array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file, path in zip((self._ids, self._mask), self._paths, strict=True):
            file.close()
            path.unlink()

    def add(self, digest: str, fitted: Fitted | None, first_row: int = 0) -> None:
        """Add a row with its documents.

        digest     the content hash of the row, in hexadecimal
        fitted     the documents of the row; None where the row is dropped
        first_row  index of the source's first row among the rows of all sources; added to the documents' `row`
        """
        self._digests += bytes.fromhex(digest)[:DIGEST]
        self._documents.append(len(fitted.lengths) if fitted else 0)
        self._lost.append(fitted.lost_answer_tokens if fitted else 0)
        self._cut.append(bool(fitted and fitted.cut))
        self._dropped.append(fitted is None)
        if not fitted:
            return
        self._lengths.extend(fitted.lengths)
        self._teacher_lengths.extend(fitted.teacher_lengths)
        self._answers.extend(fitted.answer_tokens)
        self._source_rows.extend([first_row + fitted.row] * len(fitted.lengths))
        self._ids.write(fitted.input_ids.astype(TOKEN).data)
        self._mask.write(fitted.loss_mask.astype(FLAG).data)

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
        spooled = np.cumsum(np.add(self._lengths, self._teacher_lengths))[order] - lengths - teacher_lengths
        starts = np.concatenate([[0], np.cumsum(lengths + teacher_lengths)])
        fingerprint = Fingerprint(bounds, len(order))
        of_same_texts, used = TokenSet(), {name: TokenSet() for name in IDS_USED}
        with (
            _array_file(folder, "input_ids", TOKEN, starts[-1]) as tokens,
            _array_file(folder, "loss_mask", FLAG, starts[-1]) as masks,
        ):
            for first, end in pairwise(_blocks(starts)):
                block = slice(first, end)
                sizes = np.diff(starts[first : end + 1])
                ids, mask = self._read(ranges(spooled[block], sizes))
                tokens.write(ids.data)
                masks.write(mask.data)
                fingerprint.add(ids, mask, lengths[block], teacher_lengths[block])
                two_texts = np.repeat(teacher_lengths[block] > 0, sizes)
                by_student = ranges(np.zeros_like(sizes), sizes) < np.repeat(lengths[block], sizes)
                of_same_texts.mark(ids[~two_texts])
                used["used"].mark(ids[two_texts & by_student & mask])  # all others are not read by both
                used["used_by_student"].mark(ids[two_texts & by_student])
                used["used_by_teacher"].mark(ids[two_texts & ~by_student])
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

    def _read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens and the loss mask at these places of the two files."""
        for file in (self._ids, self._mask):
            file.flush()
        ids_file, mask_file = self._paths
        return np.memmap(ids_file, TOKEN, "r")[places], np.memmap(mask_file, FLAG, "r")[places]


class Fingerprint:
    """The sha256 of the documents' tokens and masks, and of the number of documents in each row.

    bounds     [R + 1] int64: where each training row starts in the order of the store, and the held-out documents
    documents  the number of all documents
    """

    def __init__(self, bounds: np.ndarray, documents: int) -> None:
        self._digest = hashlib.sha256()
        self._rows = dict(zip(bounds.tolist(), np.diff(bounds, append=documents).tolist(), strict=True))
        self._document = 0

    def add(self, ids: np.ndarray, mask: np.ndarray, lengths: np.ndarray, teacher_lengths: np.ndarray) -> None:
        """Add the next documents: for each the student's tokens, followed by the teacher's if it has its own.

        ids, mask                 [T]
        lengths, teacher_lengths  [D] int64; 0 where the teacher reads the student's tokens
        """
        all_ids, all_masks = ids.astype("<i8").data, mask.astype("u1").data  # slices copy nothing
        start = 0
        for length, teacher_length in zip(lengths.tolist(), teacher_lengths.tolist(), strict=True):
            if self._document in self._rows:
                self._digest.update(_bytes(self._rows[self._document]))
            middle, end = start + length, start + length + teacher_length
            self._digest.update(_bytes(length))
            self._digest.update(all_ids[start:middle])
            self._digest.update(all_masks[start:middle])
            if teacher_length:
                teacher = hashlib.sha256(_bytes(1) + _bytes(teacher_length))
                teacher.update(all_ids[middle:end])
                teacher.update(all_masks[middle:end])
                self._digest.update(teacher.hexdigest().encode())
            start, self._document = end, self._document + 1

    def hexdigest(self) -> str:
        """Return the hash of everything added, in hexadecimal."""
        return self._digest.hexdigest()


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _blocks(starts: np.ndarray) -> list[int]:
    """Return the first document of each block of about TOKENS_AT_ONCE tokens, and the number of documents.

    starts  [D + 1] int64: the tokens before each document
    """
    documents = len(starts) - 1
    return [0, *(np.flatnonzero(np.diff(starts[:-1] // TOKENS_AT_ONCE)) + 1).tolist(), documents]


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

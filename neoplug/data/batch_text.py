"""The documents of a micro-batch for display: their tokens and labels, and what plugins changed of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neoplug.data.batch import Batch, Document
from neoplug.data.encode.text_encoder import Tokenizer


@dataclass(frozen=True)
class BatchDocument:
    """A document as a micro-batch holds it.

    ids     its tokens
    labels  index of an answer token in the document -> the label that is trained there
    """

    ids: list[int]
    labels: dict[int, int]

    def as_document(self) -> Document:
        """Return it with its answer tokens marked; labels that are not its tokens are lost."""
        return Document(np.array(self.ids, np.int64), np.isin(np.arange(len(self.ids)), list(self.labels)), row=-1)


def documents_of(batch: Batch) -> list[BatchDocument]:
    """Return the documents of a micro-batch, in order."""
    starts = np.cumsum([0, *batch.lengths])
    bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    documents = [BatchDocument(batch.input_ids[start:end].tolist(), {}) for start, end in bounds]
    answers = zip(batch.positions.tolist(), batch.labels.tolist(), batch.document_index.tolist(), strict=True)
    for position, label, document in answers:
        documents[document].labels[position - int(starts[document]) + 1] = label
    return documents


def changes(before: BatchDocument, after: BatchDocument, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line for each token that another one replaces, and for each answer token with another label or none."""
    if len(before.ids) != len(after.ids):
        yield f"the document has {len(after.ids)} tokens, before {len(before.ids)}"
        return

    def name(token: int | None) -> str:
        return repr(tokenizer.convert_ids_to_tokens(token))

    for index, (old, new) in enumerate(zip(before.ids, after.ids, strict=True)):
        if old != new:
            yield f"token {index}, {name(old)}, is read as {name(new)}"
    for index in sorted(before.labels.keys() | after.labels.keys()):
        label, trained = before.labels.get(index), after.labels.get(index)
        if label is None:
            yield f"token {index} is scored, with the label {name(trained)}"
        elif trained is None:
            yield f"token {index}, {name(label)}, is not scored"
        elif label != trained:
            yield f"token {index} has the label {name(trained)}, before {name(label)}"

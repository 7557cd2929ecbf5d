"""The data of a run: from the recipe's `data` section to documents that train and documents that measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from neoplug.data.batch import Document
from neoplug.data.chat import template_text
from neoplug.data.columns import Columns, Content, names_of, recognise
from neoplug.data.held_out import split
from neoplug.data.lengths import fit
from neoplug.data.packing import pack
from neoplug.data.readers import Row
from neoplug.data.report import Report, Side
from neoplug.data.sources import is_local, read_rows
from neoplug.data.tokenise import Tokeniser
from neoplug.data.tokens import Tokenizer
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data

PEEKED_ROWS = 20


@dataclass(frozen=True, eq=False)
class Corpus:
    """Everything that a run reads.

    rows         what a batch counts: of several documents where rows are packed, else of exactly one
    held_out     never trained on, never packed
    report       what became of the source's rows
    fingerprint  sha256 of all tokens and masks above, in hexadecimal
    """

    rows: list[list[Document]]
    held_out: list[Document]
    report: Report
    fingerprint: str


def load_corpus(data: Data, tokenizer: Tokenizer) -> Corpus:
    """Read, split, tokenise, cut and pack the data of a recipe.

    raises  RecipeError where the source, its columns or the split cannot be used, or nothing is left of them
    """
    tokeniser = Tokeniser(tokenizer, template_text(data.chat_template), data.train_on)
    training, kept, report = _contents(data, tokeniser)
    documents = _documents(training, tokeniser, data, report, report.train)
    held_out = _documents(kept, tokeniser, data, report, report.held_out)
    _refuse_empty(documents, held_out, report)
    rows = pack(documents, data.max_length) if data.packing else [[document] for document in documents]
    report.packed_rows = len(rows)
    return Corpus(rows, held_out, report, fingerprint([*rows, held_out]))


def check_source(data: Data) -> list[Problem]:
    """Look at the first rows of the local sources without a tokenizer: quick, before any model is loaded."""
    problems = []
    for key, source in (("source", data.source), ("eval_source", data.eval_source)):
        if source is None or not is_local(source):
            continue
        try:
            rows = list(islice(read_rows(source, data.split, ("data", key)), PEEKED_ROWS))
            recognise(names_of(_some(rows, source, ("data", key))), data.columns)
        except RecipeError as error:
            problems += error.problems
    return problems


def fingerprint(rows: Iterable[Sequence[Document]]) -> str:
    """Return the sha256 of the documents' tokens and masks, and of where documents and rows begin."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        for document in row:
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(document.input_ids.astype("<i8").tobytes())
            digest.update(document.scored.astype("u1").tobytes())
            if document.teacher_ids is not None:
                digest.update(fingerprint([[document.as_teacher()]]).encode())
    return digest.hexdigest()


def _contents(data: Data, tokeniser: Tokeniser) -> tuple[list[Content], list[Content], Report]:
    """Return the contents of the rows to train on and to measure on; broken rows are counted in the report."""
    rows = _some(list(read_rows(data.source, data.split)), data.source, ("data", "source"))
    columns = recognise(names_of(rows), data.columns)
    report = Report(data.source, list(columns.theirs.values()), data.max_length, len(rows), packing=data.packing)
    usable = _usable(rows, columns, data, report, "")
    if data.eval_source is None:
        return *split(usable, data.held_out), report
    rows = list(read_rows(data.eval_source, data.split, ("data", "eval_source")))
    columns = recognise(names_of(_some(rows, data.eval_source, ("data", "eval_source"))), data.columns)
    report.eval_rows_read = len(rows)
    kept = _usable(rows, columns, data, report, " in eval_source")
    trained = {content.digest for content in usable}
    report.leaked = sum(content.digest in trained for content in kept)
    return usable, kept, report


def _usable(rows: Sequence[Row], columns: Columns, data: Data, report: Report, where: str) -> list[Content]:
    usable = []
    for number, row in enumerate(rows):
        content = columns.content(row, number)
        if isinstance(content, Content) and (fault := _nothing_to_train_on(content, data)):
            content = fault
        if isinstance(content, str):
            report.drop(number, content + where)
        else:
            usable.append(content)
    if not usable:
        key = "eval_source" if where else "source"
        raise RecipeError([_nothing_left(f"all {len(rows)} rows are broken", report, ("data", key))])
    return usable


def _nothing_to_train_on(content: Content, data: Data) -> str:
    if content.kind != "messages" or data.train_on == "all":
        return ""
    roles = [message["role"] for message in content.values["messages"]]
    return "" if "assistant" in roles else f"no assistant turn, only {', '.join(dict.fromkeys(roles))}"


def _documents(
    contents: Sequence[Content], tokeniser: Tokeniser, data: Data, report: Report, side: Side
) -> list[Document]:
    documents: list[Document] = []
    for row in tokeniser.tokenise(contents, refused=report.drop):
        fitted = fit(row, data.max_length)
        side.add(fitted)
        documents += fitted.documents
    return documents


def _refuse_empty(training: Sequence[Document], held_out: Sequence[Document], report: Report) -> None:
    for documents, name in ((training, "to train on"), (held_out, "to measure on")):
        if not documents:
            raise RecipeError([_nothing_left(f"no row {name} is left", report, ("data", "source"))])


def _nothing_left(what: str, report: Report, key: Path) -> Problem:
    return Problem(what, why="; ".join(report.lines()[1:]), path=key)


def _some(rows: list[Row], source: str, key: Path) -> list[Row]:
    if not rows:
        raise RecipeError([Problem(f"{source} holds no rows", path=key)])
    return rows

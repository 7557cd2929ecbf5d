"""Rows in, documents out: each row is understood, tokenised and cut, a few hundred at a time, and none is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from neoplug.data.encode.lengths import Fitted, fit
from neoplug.data.encode.tokenise import ROWS_AT_ONCE, Tokeniser
from neoplug.data.ingest.columns import Columns, Content, names_of, recognise
from neoplug.data.ingest.parts import Part
from neoplug.data.ingest.readers import Fault, Row
from neoplug.data.ingest.report import Read, Report
from neoplug.data.store.spool import Spool
from neoplug.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data

PEEKED_ROWS = 1000  # say which columns a source has
CHARACTERS_AT_ONCE = 2**22  # so that rows of a megabyte go to the tokenizer by fours


@dataclass(frozen=True, eq=False)
class Intake:
    """The way of a recipe's rows to the spool; what is lost on it is counted."""

    data: Data
    tokeniser: Tokeniser
    spool: Spool
    report: Report

    def take(self, part: Part, read: Read, first: int = 0) -> slice:
        """Bring a source's rows to the spool; return which of the spool's rows they are.

        read    is filled in
        first   the number of its first row among those of all sources
        raises  RecipeError where it has no rows, or none that can be used
        """
        rows, before = part.opened.rows(), self.spool.rows
        begin = list(islice(rows, PEEKED_ROWS))
        columns = columns_of(begin, part)
        read.columns = list(columns.seen)
        for batch in _batches(self._contents(chain(begin, rows), columns, read)):
            with part.naming():
                fitted = self._fitted(batch, read)
            for content in batch:
                became = fitted.get(content.number)
                self.spool.add(content.digest, became, first)
                self.report.count(content.kind, became)
        place = slice(before, self.spool.rows)
        if place.start == place.stop:
            raise RecipeError([self.nothing_left(f"all {read.rows} rows are broken", part)])
        read.without_answer = self.spool.side(place).rows_without_answer
        return place

    def _contents(self, rows: Iterable[Row | Fault], columns: Columns, read: Read) -> Iterator[Content]:
        """Yield what the rows hold; a row that is of no use is counted and left out."""
        for number, row in enumerate(rows):
            read.rows += 1
            content = _content(row, number, columns, self.data)
            if isinstance(content, Content):
                yield content
            else:
                read.drop(number, content, row)

    def _fitted(self, batch: Sequence[Content], read: Read) -> dict[int, Fitted]:
        """Tokenise and cut rows; return what each became, by its number. A refused one is counted and left out."""
        values = {content.number: content.values for content in batch}
        found = self.tokeniser.tokenise(batch, lambda row, why: read.drop(row, why, values[row]))
        return {row.row: fit(row, self.data.max_length) for row in found}

    def nothing_left(self, what: str, part: Part) -> Problem:
        """Say what became of all rows, where none is left."""
        why = "; ".join(self.report.lines()[len(self.report.read) :])
        fix = "mend the rows or the chat template, or set a larger data.max_length"
        return Problem(what + part.where, why, fix, part.key)


def columns_of(rows: Sequence[Row | Fault], part: Part) -> Columns:
    """Say what the columns of a source mean, by its first rows.

    raises  RecipeError where there is no row, or the columns fit no kind of row
    """
    if not rows:
        raise RecipeError([Problem(f"{part.source} holds no rows", path=part.key)])
    whole = [row for row in rows if not isinstance(row, Fault)]
    if not whole:
        raise RecipeError([Problem(f"no row of {part.source} can be read; the first is {rows[0]}", path=part.key)])
    with part.naming():
        return recognise(names_of(whole), part.columns)


def _content(row: Row | Fault, number: int, columns: Columns, data: Data) -> Content | str:
    """Return what the row holds, or why it is of no use."""
    if isinstance(row, Fault):
        return row
    try:
        content = columns.content(row, number)
    except ValueError as error:  # JSON may hold NaN, which has no hash
        return f"a value that cannot be hashed ({error})"
    return content if isinstance(content, str) else _nothing_to_train_on(content, data) or content


def _nothing_to_train_on(content: Content, data: Data) -> str:
    if content.kind != "messages" or data.train_on == "all":
        return ""
    roles = [message["role"] for message in content.values["messages"]]
    return "" if "assistant" in roles else f"no assistant turn, only {', '.join(dict.fromkeys(roles))}"


def _batches(contents: Iterable[Content]) -> Iterator[list[Content]]:
    """Yield contents as many at a time as the tokenizer gets at once."""
    batch: list[Content] = []
    characters = 0
    for content in contents:
        batch.append(content)
        characters += sum(
            len(value) if isinstance(value, str) else len(str(value)) for value in content.values.values()
        )
        if len(batch) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

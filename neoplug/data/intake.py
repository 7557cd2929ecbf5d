"""Rows in, documents out: each row is understood, tokenised and cut, a few hundred at a time, and none is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from neoplug.data.columns import Columns, Content, names_of, recognise
from neoplug.data.lengths import Fitted, fit
from neoplug.data.readers import Fault, Row
from neoplug.data.report import Report
from neoplug.data.sources import Source
from neoplug.data.spool import Spool
from neoplug.data.tokenise import ROWS_AT_ONCE, Tokeniser
from neoplug.errors import Path, Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data

PEEKED_ROWS = 1000  # say which columns a source has
CHARACTERS_AT_ONCE = 2**22  # so that rows of a megabyte go to the tokenizer by fours


@dataclass(frozen=True, eq=False)
class Intake:
    """The way of all rows of a recipe, and the report that counts what is lost on it."""

    data: Data
    tokeniser: Tokeniser
    report: Report
    spool: Spool

    def take(self, source: Source, name: str, key: Path, where: str = "") -> tuple[Columns, int]:
        """Bring a source's rows to the spool; return what its columns mean and how many rows it has.

        name   of the source, for people
        key    the recipe's key that names it
        where  follows a reason for which a row is dropped
        raises  RecipeError where it has no rows, or none that can be used
        """
        rows = source.rows()
        first = list(islice(rows, PEEKED_ROWS))
        columns, usable, read = columns_of(first, name, self.data, key), 0, 0

        def counted() -> Iterator[Content]:
            nonlocal read
            for read, row in enumerate(chain(first, rows), 1):
                content = _content(row, read - 1, columns, self.data)
                if isinstance(content, Content):
                    yield content
                else:
                    self.report.drop(read - 1, content + where, row)

        for batch in _batches(counted()):
            usable += len(batch)
            fitted = self._fitted(batch, where)
            for content in batch:
                became = fitted.get(content.number)
                self.spool.add(content.digest, became)
                self.report.count(content.kind, became)
        if not usable:
            raise RecipeError([nothing_left(f"all {read} rows are broken", self.report, key)])
        return columns, read

    def _fitted(self, batch: Sequence[Content], where: str) -> dict[int, Fitted]:
        """Tokenise and cut rows; return what each became, by its number. A refused one is counted and left out."""
        values = {content.number: content.values for content in batch}
        found = self.tokeniser.tokenise(batch, lambda row, why: self.report.drop(row, why + where, values[row]))
        return {row.row: fit(row, self.data.max_length) for row in found}


def columns_of(rows: Sequence[Row | Fault], name: str, data: Data, key: Path) -> Columns:
    """Say what the columns of a source mean, by its first rows.

    raises  RecipeError where there is no row, or the columns fit no kind of row
    """
    if not rows:
        raise RecipeError([Problem(f"{name} holds no rows", path=key)])
    whole = [row for row in rows if not isinstance(row, Fault)]
    if not whole:
        raise RecipeError([Problem(f"no row of {name} can be read; the first is {rows[0]}", path=key)])
    return recognise(names_of(whole), data.columns)


def nothing_left(what: str, report: Report, key: Path) -> Problem:
    """Say what became of all rows, where none is left."""
    return Problem(what, why="; ".join(report.lines()[1:]), path=key)


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

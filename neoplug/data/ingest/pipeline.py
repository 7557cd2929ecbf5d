"""The ingest pipeline: rows of a source are parsed, tokenised, cut to documents and added to the spool, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from neoplug.data.encode.faults import MASKED
from neoplug.data.encode.lengths import Fitted, fit
from neoplug.data.encode.row_encoder import ROWS_AT_ONCE, RowEncoder
from neoplug.data.ingest.columns import Columns, Content, names_of, recognise, usable_names
from neoplug.data.ingest.fixes import fixes_of
from neoplug.data.ingest.messages import is_unscored
from neoplug.data.ingest.recipe_sources import RecipeSource
from neoplug.data.ingest.report import Report, SourceCounts
from neoplug.data.ingest.values import Reason, Row
from neoplug.data.store.spool import Spool
from neoplug.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.recipe import Data

INSPECTED_ROWS = 1000  # first rows of a source, by which its columns are recognised
CHARACTERS_AT_ONCE = 2**22  # in one call of the tokenizer; the limit bounds its memory


@dataclass(frozen=True, eq=False)
class IngestPipeline:
    """Adds the rows of a recipe's sources to the spool; the report counts what is dropped and cut."""

    data: Data
    encoder: RowEncoder
    spool: Spool
    report: Report

    def ingest(self, source: RecipeSource, counts: SourceCounts, first_row: int = 0) -> slice:
        """Add a source's rows to the spool; return the range of their indices in the spool.

        counts     counts of the source's rows, which this call increases
        first_row  index of the source's first row among the rows of all sources
        raises     RecipeError where the source has no rows, or none that can be used
        """
        before = self.spool.rows
        columns, rows = inspect(source)
        counts.columns = list(columns.used)
        for batch in _batches(self._contents(rows, columns, counts)):
            with source.labelled_errors():
                fitted = self._fit(batch, counts)
            for content in batch:
                documents = fitted.get(content.number)
                self.spool.add(content.digest, documents, first_row)
                self.report.count(content.kind, documents)
        added = slice(before, self.spool.rows)
        if added.start == added.stop:
            raise RecipeError([self.no_row_left(f"all {counts.rows} rows are broken", source)])
        counts.without_answer = self.spool.split_counts(added).rows_without_answer
        return added

    def _contents(self, rows: Iterable[Row | Reason], columns: Columns, counts: SourceCounts) -> Iterator[Content]:
        """Yield the content of each usable row; count each unusable one with its reason."""
        for number, row in enumerate(rows):
            counts.rows += 1
            content_or_reason = _content(row, number, columns, self.data)
            if isinstance(content_or_reason, Content):
                for name in content_or_reason.unused:
                    counts.note(number, f"with text in `{name}` that is not used")
                yield content_or_reason
            else:
                counts.drop(number, content_or_reason, row)

    def _fit(self, batch: Sequence[Content], counts: SourceCounts) -> dict[int, Fitted]:
        """Return row number -> the row's documents; count each row that a chat template does not render."""
        values = {content.number: content.values for content in batch}
        fitted = {}
        for row in self.encoder.encode(batch, lambda number, reason: counts.drop(number, reason, values[number])):
            fitted[row.row] = fit(row, self.data.max_length)
            for note in row.notes:
                counts.note(row.row, note)
        return fitted

    def no_row_left(self, what: str, source: RecipeSource) -> Problem:
        """Return the problem that no row of a source can be used; `what` says for what, the report's lines say why."""
        why = "; ".join(self.report.lines()[len(self.report.read) :])
        fix = "; ".join(fixes_of(self.report.reasons_lost())) or "fix the rows"
        return Problem(what + source.suffix, why, fix, source.key)


def inspect(source: RecipeSource) -> tuple[Columns, Iterator[Row | Reason]]:
    """Return the mapping of a source's columns, recognised by its first rows, and all rows with these columns.

    raises  RecipeError where there is no row, or the columns match no kind of row
    """
    rows = source.reader.rows(usable_names(source.columns))
    first = list(islice(rows, INSPECTED_ROWS))
    names = source.reader.column_names()
    if not first:
        raise RecipeError([Problem(f"{source.name} has no rows", path=source.key)])
    readable = [row for row in first if not isinstance(row, Reason)]
    if not readable:
        raise RecipeError([Problem(f"no row of {source.name} can be read; the first is {first[0]}", path=source.key)])
    with source.labelled_errors():
        columns = recognise(list(dict.fromkeys([*names, *names_of(readable)])), source.columns)
    return columns, chain(first, rows)


def _content(row: Row | Reason, number: int, columns: Columns, data: Data) -> Content | Reason:
    """Return the content of a row, or the reason why it cannot be used."""
    if isinstance(row, Reason):
        return row
    try:
        content = columns.content(row, number)
    except (ValueError, TypeError) as error:  # JSON has no NaN, and no value of a type that another format may have
        return f"a value that cannot be hashed ({error})"
    if isinstance(content, Reason) or (reason := _nothing_to_train_on(content, data)):
        return content if isinstance(content, Reason) else reason
    return _with_options(content, data.chat_template_kwargs)


def _with_options(content: Content, options: Mapping[str, Any]) -> Content:
    """Return a row with the recipe's options of the chat template, unless it has its own; its digest stays the same."""
    if not options or content.kind not in ("messages", "alpaca"):
        return content
    name = "chat_template_kwargs"
    return replace(content, values={**content.values, name: {**options, **content.values.get(name, {})}})


def _nothing_to_train_on(content: Content, data: Data) -> Reason:
    """Return the reason why a conversation has no token to train on; an empty string where it has."""
    if content.kind != "messages" or data.train_on == "all":
        return ""
    messages = content.values["messages"]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return f"no assistant turn, only {', '.join(dict.fromkeys(roles))}"
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(map(is_unscored, answers[-1:] if data.train_on == "last" else answers)):
        return f"{'the last' if data.train_on == 'last' else 'each'} {MASKED}"
    return ""


def _batches(contents: Iterable[Content]) -> Iterator[list[Content]]:
    """Yield the contents in batches, each for one call of the tokenizer."""
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

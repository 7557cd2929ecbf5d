"""The data report: counts of the rows that are read, dropped (with reasons), cut, trained on and held out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from neoplug.data.encode.lengths import Fitted
from neoplug.data.ingest.columns import NEEDED, Kind
from neoplug.data.ingest.fixes import fixes_of
from neoplug.errors import Path as Key
from neoplug.errors import Problem

EXAMPLES = 3  # row numbers shown for each reason
REASONS = 10  # reasons shown, the most frequent first
EXCERPT = 100  # characters shown of a row


@dataclass
class Dropped:
    """The rows of a source that are dropped for one reason, or of which the same is reported.

    rows     how many
    first    the numbers of the first ones
    excerpt  the beginning of the first one; empty for a row that could not be read
    """

    rows: int = 0
    first: list[int] = field(default_factory=list)
    excerpt: str = ""

    def add(self, row: int) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.first) < EXAMPLES:
            self.first.append(row)


@dataclass
class SourceCounts:
    """Counts of one source's rows.

    columns         the source's columns that are used
    rows            rows read
    dropped         reason -> the rows (numbered from 0) that are dropped for it
    noted           what is reported of rows that are kept -> these rows
    without_answer  rows that have no answer token left after cutting; they are not in `dropped`
    training_rows   rows to train on: packed rows with packing, else documents
    epoch_rows      how many of `training_rows` are in an epoch
    tokens          the student's tokens of all training rows
    answer_tokens   how many of `tokens` are in the loss
    notes           sentences about what of the source is not read
    """

    source: str
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    noted: dict[str, Dropped] = field(default_factory=dict)
    without_answer: int = 0
    training_rows: int = 0
    epoch_rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    notes: list[str] = field(default_factory=list)

    def drop(self, row: int, reason: str, content: Any = None) -> None:
        """Count a dropped row; the first one for a reason gives the excerpt, from its `content`."""
        excerpt = "" if reason in self.dropped else _excerpt(content)
        self.dropped.setdefault(reason, Dropped(excerpt=excerpt)).add(row)

    def note(self, row: int, note: str) -> None:
        """Count a row that is kept, of which something is reported."""
        self.noted.setdefault(note, Dropped()).add(row)

    def lost(self) -> dict[str, Dropped]:
        """Return reason -> all rows that are not used: those in `dropped`, and those without an answer token."""
        without = {"no answer token left within max_length": Dropped(self.without_answer)}
        return self.dropped | (without if self.without_answer else {})


@dataclass
class KindCounts:
    """Counts of the rows of one kind, before the split."""

    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0


@dataclass
class SplitCounts:
    """Counts of the training rows, or of the held-out rows, before packing.

    tokens              the student's tokens
    answer_tokens       how many of `tokens` are in the loss
    rows_cut            rows truncated to `max_length`
    answer_tokens_lost  answer tokens that are cut off from these
    rows_in_windows     rows split into several windows
    teacher_tokens      the teacher's tokens of rows that it reads in its own chat template
    """

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    rows_cut: int = 0
    answer_tokens_lost: int = 0
    rows_without_answer: int = 0
    rows_in_windows: int = 0
    teacher_tokens: int = 0

    def lines(self, name: str, max_length: int) -> list[str]:
        """Return the counts as sentences; counts of zero are left out."""
        lines = [
            f"{name}: {_count(self.rows, 'row')}, {_count(self.documents, 'document')}, "
            f"{_count(self.tokens, 'token')}, {self.answer_tokens:,} of them scored"
        ]
        if self.rows_cut:
            lost = f"{_count(self.answer_tokens_lost, 'answer token')} lost"
            lines.append(f"{name}: {_count(self.rows_cut, 'row')} cut at max_length {max_length}, {lost}")
        if self.rows_without_answer:
            lines.append(f"{name}: {_count(self.rows_without_answer, 'row')} dropped, no answer token left")
        if self.rows_in_windows:
            lines.append(f"{name}: {_count(self.rows_in_windows, 'long text')} in windows of {max_length} tokens")
        if self.teacher_tokens:
            lines.append(f"{name}: the teacher reads {_count(self.teacher_tokens, 'token')}, with its own prompts")
        return lines


@dataclass
class Report:
    """Counts of all data of a run.

    read       name of each training source -> its counts; the name of an only source is empty
    eval_read  counts of the evaluation source; None where rows are held out of the training sources
    kinds      kind of row -> its counts
    leaked     number of rows of the evaluation source that are also in a training source
    train      counts of the training rows of all sources
    held_out   counts of the rows that are evaluated on
    eval_key   the key of `data` that names the evaluation rows
    """

    max_length: int
    read: dict[str, SourceCounts] = field(default_factory=dict)
    eval_read: SourceCounts | None = None
    kinds: dict[Kind, KindCounts] = field(default_factory=dict)
    leaked: int = 0
    train: SplitCounts = field(default_factory=SplitCounts)
    held_out: SplitCounts = field(default_factory=SplitCounts)
    packing: bool = True
    eval_key: str = "eval_source"

    def count(self, kind: Kind, fitted: Fitted | None) -> None:
        """Count a row of a kind, and the tokens of its documents; `fitted` is None for a row that is dropped."""
        counts = self.kinds.setdefault(kind, KindCounts())
        counts.rows += 1
        if fitted:
            counts.tokens += int(fitted.lengths.sum())
            counts.answer_tokens += int(fitted.answer_tokens.sum())

    @property
    def sources(self) -> dict[Key, SourceCounts]:
        """Return the key in the recipe -> the counts, of each training source and of the evaluation source."""
        counts: dict[Key, SourceCounts] = {
            ("data", "sources", name) if name else ("data", "source"): read for name, read in self.read.items()
        }
        return counts | ({("data", self.eval_key): self.eval_read} if self.eval_read else {})

    @property
    def dropped(self) -> dict[str, Dropped]:
        """Return reason -> the rows that are dropped for it; the reason names the source where there are several."""
        return {
            reason + _in_source(key): rows
            for key, read in self.sources.items()
            for reason, rows in read.dropped.items()
        }

    @property
    def noted(self) -> dict[str, Dropped]:
        """Return what is reported of rows that are kept -> these rows; it names the source where there are several."""
        return {note + _in_source(key): rows for key, read in self.sources.items() for note, rows in read.noted.items()}

    def reasons_lost(self) -> list[str]:
        """Return the reasons why rows of any source are not used, the most frequent first."""
        return [reason for read in self.sources.values() for reason in _most_frequent(read.lost())]

    @property
    def packed_rows(self) -> int:
        """Return the number of training rows of all sources: with packing, of packed rows."""
        return sum(read.training_rows for read in self.read.values())

    def row_label(self, row: int) -> str:
        """Return how messages name a row, which is numbered over all training sources: "3 of chat", or "3"."""
        for name, read in self.read.items():
            if row < read.rows:
                return f"{row} of {name}" if name else str(row)
            row -= read.rows
        raise ValueError(f"the row is {row} rows after the end of the last source")

    def problems(self, allowed: float, *, has_prompts: bool) -> list[Problem]:
        """Return the problems that end a run: too many unused rows, or an unused teacher template.

        allowed      the share of a source's rows that may be unused
        has_prompts  whether the recipe gives the teacher its own chat template
        """
        problems = [
            _too_many(key, read, allowed)
            for key, read in self.sources.items()
            if sum(dropped.rows for dropped in read.lost().values()) > allowed * read.rows
        ]
        if has_prompts and not self.train.teacher_tokens + self.held_out.teacher_tokens:
            what, fix = "the teacher has a chat_template, but no row is a conversation", "remove the key"
            why = f"the rows are {' and '.join(self.kinds)}"
            problems.append(Problem(what, why, fix, ("teacher", "chat_template")))
        return problems

    @property
    def fill(self) -> float:
        """Return the share of the positions in packed rows (`max_length` each) that have a token."""
        return self.train.tokens / (self.packed_rows * self.max_length) if self.packed_rows else 0.0

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [_read_line(name, read) for name, read in self.read.items()]
        if self.eval_read:
            lines.append(f"data: {_count(self.eval_read.rows, 'evaluation row')}")
        notes = [note for read in self.sources.values() for note in read.notes]
        lines += [f"data: {note}" for note in dict.fromkeys(notes)]
        if len(self.kinds) > 1:
            lines += [f"data: {line}" for line in self.kind_lines()]
        lines += [f"data: {line}" for line in _reasons(self.dropped)]
        lines += [f"data: {_count(rows.rows, 'row')} {note}{_shown(rows)}" for note, rows in self.noted.items()]
        if self.leaked:
            verb = "is" if self.leaked == 1 else "are"
            lines.append(f"data: {_count(self.leaked, 'evaluation row')} {verb} also in the training rows")
        lines += self.train.lines("training", self.max_length) + self.held_out.lines("held out", self.max_length)
        if self.packing:
            lines.append(f"training: packed into {_count(self.packed_rows, 'row')}, {self.fill:.1%} full")
        if any(read.epoch_rows < read.training_rows for read in self.read.values()):
            shown = [f"{read.epoch_rows:,} of the {read.training_rows:,} of {name}" for name, read in self.read.items()]
            lines.append(f"training: an epoch has {', '.join(shown)}")
        return lines

    def kind_lines(self) -> list[str]:
        """Return one line of counts for each kind of row."""
        names = {kind: " + ".join(columns) for kind, columns in NEEDED.items()}
        return [
            f"{_count(counts.rows, 'row')} of {names[kind]}, {_count(counts.tokens, 'token')}, "
            f"{counts.answer_tokens:,} of them scored"
            for kind, counts in self.kinds.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts in JSON types; `dropped` holds the number of rows for each reason."""
        counted = asdict(self)
        counted["dropped"] = {reason: dropped.rows for reason, dropped in self.dropped.items()}
        return counted | {"packed_rows": self.packed_rows, "fill": self.fill}


def _read_line(name: str, read: SourceCounts) -> str:
    """Return the line about one training source."""
    place = f"{name}: {read.source}" if name else read.source
    return f"data: {_count(read.rows, 'row')} of {place} ({' + '.join(read.columns)})"


def _reasons(dropped: Mapping[str, Dropped]) -> list[str]:
    """Return one line for each reason, the most frequent first; one line for all after the first REASONS."""
    ordered = list(_most_frequent(dropped).items())
    lines = [_reason(reason, rows) for reason, rows in ordered[:REASONS]]
    rest = ordered[REASONS:]
    if rest:
        lines.append(f"{_count(sum(d.rows for _, d in rest), 'row')} dropped, for {len(rest)} other reasons")
    return lines


def _most_frequent(dropped: Mapping[str, Dropped]) -> dict[str, Dropped]:
    return dict(sorted(dropped.items(), key=lambda item: -item[1].rows))


def _reason(reason: str, dropped: Dropped) -> str:
    return f"{_count(dropped.rows, 'row')} dropped, {reason}{_shown(dropped)}"


def _shown(rows: Dropped) -> str:
    """Return the numbers of the first rows in parentheses."""
    numbers = ", ".join(map(str, rows.first)) + (", ..." if rows.rows > len(rows.first) else "")
    return f" (row{'s' * (rows.rows > 1)} {numbers})" if rows.first else ""


def _in_source(key: Key) -> str:
    return f" in {key[-1]}" if key != ("data", "source") else ""


def _too_many(key: Key, read: SourceCounts, allowed: float) -> Problem:
    lost = read.lost()
    rows = sum(dropped.rows for dropped in lost.values())
    fix = "; ".join(fixes_of(_most_frequent(lost))) or "fix the rows (`neoplug preview` shows some)"
    return Problem(
        f"{rows:,} of the {read.rows:,} rows of `{key[-1]}` are dropped ({rows / read.rows:.1%}), "
        f"and at most {allowed:.1%} may be",
        why="; ".join(_reasons(lost)),
        fix=f"{fix}, or set data.max_dropped_rows to the share that you accept",
        path=key,
    )


def _excerpt(content: Any) -> str:
    """Return the beginning of a row as JSON; an empty string for a Reason in its place."""
    if content is None or isinstance(content, str):
        return ""
    text = json.dumps(content, ensure_ascii=False, default=str)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def _count(number: int, noun: str) -> str:
    """Return the number with its noun, in the plural where it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

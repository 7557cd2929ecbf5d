"""What became of the rows, in numbers: nothing is dropped or cut in silence."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from neoplug.data.encode.lengths import Fitted
from neoplug.data.ingest.columns import NEEDED, Kind
from neoplug.errors import Path as Key
from neoplug.errors import Problem

EXAMPLES = 3  # row numbers shown for each reason
REASONS = 10  # shown, the most frequent first
EXCERPT = 100  # characters shown of a row


@dataclass
class Dropped:
    """Rows that are not used, for one reason: how many, the numbers of the first, and how the very first begins."""

    rows: int = 0
    first: list[int] = field(default_factory=list)
    excerpt: str = ""


@dataclass
class Read:
    """What became of one source's rows.

    columns         those that are used
    dropped         reason -> the rows (numbered from 0) that were dropped for it
    without_answer  rows of which no answer token was left
    training_rows   what training counts as rows of it: packed ones, where rows are packed
    epoch_rows      how many of these an epoch shows
    tokens          of all its training rows; answer_tokens are those of them that are scored
    """

    source: str
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    without_answer: int = 0
    training_rows: int = 0
    epoch_rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0

    def drop(self, row: int, reason: str, content: Any = None) -> None:
        """Count a row that is not used."""
        dropped = self.dropped.setdefault(reason, Dropped(excerpt="" if reason in self.dropped else _excerpt(content)))
        dropped.rows += 1
        if len(dropped.first) < EXAMPLES:
            dropped.first.append(row)

    def lost(self) -> dict[str, Dropped]:
        """Return reason -> the rows that are not used."""
        without = {"no answer token left within max_length": Dropped(self.without_answer)}
        return self.dropped | (without if self.without_answer else {})


@dataclass
class Tally:
    """How much there is of one kind of rows, before the split."""

    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0


@dataclass
class Side:
    """What became of the rows of one side of the split."""

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
        """Return the counts in words; what did not happen is not mentioned."""
        said = [
            f"{name}: {_count(self.rows, 'row')}, {_count(self.documents, 'document')}, "
            f"{_count(self.tokens, 'token')}, {self.answer_tokens:,} of them scored"
        ]
        if self.rows_cut:
            lost = f"{_count(self.answer_tokens_lost, 'answer token')} lost"
            said.append(f"{name}: {_count(self.rows_cut, 'row')} cut at max_length {max_length}, {lost}")
        if self.rows_without_answer:
            said.append(f"{name}: {_count(self.rows_without_answer, 'row')} dropped, no answer token left")
        if self.rows_in_windows:
            said.append(f"{name}: {_count(self.rows_in_windows, 'long text')} in windows of {max_length} tokens")
        if self.teacher_tokens:
            said.append(f"{name}: the teacher reads {_count(self.teacher_tokens, 'token')}, with prompts of its own")
        return said


@dataclass
class Report:
    """Counts of a corpus.

    read            source's name -> what became of its rows; the only source's name is empty
    eval_read       the same of what is measured on
    kinds           kind of row -> what there is of it
    leaked          rows of it that stand in the training rows too
    teacher_tokens  of a side: what the teacher reads in place of the student's tokens, where it has its own prompts
    """

    max_length: int
    read: dict[str, Read] = field(default_factory=dict)
    eval_read: Read | None = None
    kinds: dict[Kind, Tally] = field(default_factory=dict)
    leaked: int = 0
    train: Side = field(default_factory=Side)
    held_out: Side = field(default_factory=Side)
    packing: bool = True

    def count(self, kind: Kind, fitted: Fitted | None) -> None:
        """Count a row of a kind, and the documents that it became."""
        tally = self.kinds.setdefault(kind, Tally())
        documents = fitted.documents if fitted else []
        tally.rows += 1
        tally.tokens += sum(map(len, documents))
        tally.answer_tokens += sum(document.answer_tokens for document in documents)

    @property
    def everything(self) -> dict[Key, Read]:
        """Return the recipe's key of each source -> what became of its rows."""
        found: dict[Key, Read] = {
            ("data", "sources", name) if name else ("data", "source"): read for name, read in self.read.items()
        }
        return found | ({("data", "eval_source"): self.eval_read} if self.eval_read else {})

    @property
    def dropped(self) -> dict[str, Dropped]:
        """Return reason -> the rows that were dropped for it; it names the source where there are several."""
        return {
            reason + (f" in {key[-1]}" if key != ("data", "source") else ""): dropped
            for key, read in self.everything.items()
            for reason, dropped in read.dropped.items()
        }

    @property
    def packed_rows(self) -> int:
        """Return what training counts as rows."""
        return sum(read.training_rows for read in self.read.values())

    def named(self, row: int) -> str:
        """Name the row of a training document as its source numbers it."""
        for name, read in self.read.items():
            if row < read.rows:
                return f"{row} of {name}" if name else str(row)
            row -= read.rows
        raise ValueError(f"no source has a row {row} rows after its end")

    def problems(self, allowed: float, *, has_prompts: bool) -> list[Problem]:
        """Return what of the counts ends a run.

        allowed      the share of a source's rows that may be dropped
        has_prompts  whether the teacher is to have prompts of its own
        """
        found = [
            _too_many(key, read, allowed)
            for key, read in self.everything.items()
            if sum(dropped.rows for dropped in read.lost().values()) > allowed * read.rows
        ]
        if has_prompts and not self.train.teacher_tokens + self.held_out.teacher_tokens:
            what, fix = "the teacher has a chat_template, but no row is a conversation", "leave it out"
            found.append(Problem(what, f"the rows are {' and '.join(self.kinds)}", fix, ("teacher", "chat_template")))
        return found

    @property
    def fill(self) -> float:
        """Return which share of the packed rows' room holds tokens."""
        return self.train.tokens / (self.packed_rows * self.max_length) if self.packed_rows else 0.0

    def lines(self) -> list[str]:
        """Return the report in words, a line each."""
        said = [_read_line(name, read) for name, read in self.read.items()]
        if self.eval_read:
            said.append(f"data: {_count(self.eval_read.rows, 'row')} to measure on")
        if len(self.kinds) > 1:
            said += [f"data: {line}" for line in self.kind_lines()]
        said += [f"data: {line}" for line in _reasons(self.dropped)]
        if self.leaked:
            said.append(f"data: {_count(self.leaked, 'row')} to measure on also stand in the training rows")
        said += self.train.lines("training", self.max_length) + self.held_out.lines("held out", self.max_length)
        if self.packing:
            said.append(f"training: packed into {_count(self.packed_rows, 'row')}, {self.fill:.1%} full")
        if any(read.epoch_rows < read.training_rows for read in self.read.values()):
            shown = [f"{read.epoch_rows:,} of the {read.training_rows:,} of {name}" for name, read in self.read.items()]
            said.append(f"training: an epoch shows {', '.join(shown)}")
        return said

    def kind_lines(self) -> list[str]:
        """Return in words what there is of each kind of row."""
        names = {kind: " + ".join(columns) for kind, columns in NEEDED.items()}
        return [
            f"{_count(tally.rows, 'row')} of {names[kind]}, {_count(tally.tokens, 'token')}, "
            f"{tally.answer_tokens:,} of them scored"
            for kind, tally in self.kinds.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, ready for JSON; of dropped rows the number for each reason."""
        counted = asdict(self)
        counted["dropped"] = {reason: dropped.rows for reason, dropped in self.dropped.items()}
        return counted | {"packed_rows": self.packed_rows, "fill": self.fill}


def _read_line(name: str, read: Read) -> str:
    """Say in words what was read of a source."""
    place = f"{name}: {read.source}" if name else read.source
    return f"data: {_count(read.rows, 'row')} of {place} ({' + '.join(read.columns)})"


def _reasons(found: Mapping[str, Dropped]) -> list[str]:
    """Return in words for what rows were dropped, the most frequent reasons first."""
    ordered = sorted(found.items(), key=lambda item: -item[1].rows)
    said = [_dropped(reason, dropped) for reason, dropped in ordered[:REASONS]]
    rest = ordered[REASONS:]
    if rest:
        said.append(f"{_count(sum(d.rows for _, d in rest), 'row')} dropped, for {len(rest)} other reasons")
    return said


def _dropped(reason: str, dropped: Dropped) -> str:
    shown = ", ".join(map(str, dropped.first)) + (", ..." if dropped.rows > len(dropped.first) else "")
    where = f" (row{'s' * (dropped.rows > 1)} {shown})" if dropped.first else ""
    return f"{_count(dropped.rows, 'row')} dropped, {reason}{where}"


def _too_many(key: Key, read: Read, allowed: float) -> Problem:
    lost = read.lost()
    rows = sum(dropped.rows for dropped in lost.values())
    return Problem(
        f"{rows:,} of the {read.rows:,} rows of `{key[-1]}` are dropped ({rows / read.rows:.1%}), "
        f"and at most {allowed:.1%} may be",
        why="; ".join(_reasons(lost)),
        fix="mend the rows (`neoplug preview` shows some), or set data.max_dropped_rows to the share that you accept",
        path=key,
    )


def _excerpt(content: Any) -> str:
    """Return how a row begins, as JSON; nothing of a row that could not be read."""
    if content is None or isinstance(content, str):
        return ""
    text = json.dumps(content, ensure_ascii=False, default=str)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

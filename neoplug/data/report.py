"""What became of the rows, in numbers: nothing is dropped or cut in silence."""

from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES = 3  # row numbers shown for each reason


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
        return said


@dataclass
class Report:
    """Counts of a corpus.

    columns      the source's columns that are used
    rows_read    of the source; of eval_source where the recipe has one: eval_rows_read
    broken       reason -> numbers of the rows (from 0) that were dropped for it; eval_source's stand under its own name
    leaked       rows of eval_source that stand in the training rows too
    packed_rows  what training counts as rows
    """

    source: str
    columns: list[str]
    max_length: int
    rows_read: int = 0
    eval_rows_read: int = 0
    broken: dict[str, list[int]] = field(default_factory=dict)
    leaked: int = 0
    train: Side = field(default_factory=Side)
    held_out: Side = field(default_factory=Side)
    packed_rows: int = 0
    packing: bool = True

    def drop(self, row: int, reason: str) -> None:
        """Count a row that is not used."""
        self.broken.setdefault(reason, []).append(row)

    @property
    def fill(self) -> float:
        """Return which share of the packed rows' room holds tokens."""
        return self.train.tokens / (self.packed_rows * self.max_length) if self.packed_rows else 0.0

    def lines(self) -> list[str]:
        """Return the report in words, a line each."""
        said = [f"data: {_count(self.rows_read, 'row')} of {self.source} ({' + '.join(self.columns)})"]
        if self.eval_rows_read:
            said.append(f"data: {_count(self.eval_rows_read, 'row')} to measure on, from eval_source")
        for reason, rows in self.broken.items():
            shown = ", ".join(map(str, rows[:EXAMPLES])) + (", ..." if len(rows) > EXAMPLES else "")
            said.append(f"data: {_count(len(rows), 'row')} dropped, {reason} (row{'s' * (len(rows) > 1)} {shown})")
        if self.leaked:
            said.append(f"data: {_count(self.leaked, 'row')} of eval_source also stand in the training rows")
        said += self.train.lines("training", self.max_length) + self.held_out.lines("held out", self.max_length)
        if self.packing:
            said.append(f"training: packed into {_count(self.packed_rows, 'row')}, {self.fill:.1%} full")
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, ready for JSON; of dropped rows the number for each reason."""
        counted = asdict(self)
        counted["broken"] = {reason: len(rows) for reason, rows in self.broken.items()}
        return counted | {"fill": self.fill}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

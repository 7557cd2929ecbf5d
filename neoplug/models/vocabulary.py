"""Token -> id maps of two tokenizers compared; the verified shared part, over which both distributions are taken.

V shared vocabulary, N tokens. A head may have more rows than its tokenizer has tokens (padding): such rows stand for no
token, so they belong to neither distribution.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neoplug.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 5  # differing tokens in an error


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The token ids that mean the same at both ends.

    size  V
    ids   [V] int64, ascending, on the CPU; None where they are exactly 0 .. V - 1
    """

    size: int
    ids: Tensor | None = None
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def index(self, labels: Tensor) -> Tensor:
        """Return where token ids stand in the shared vocabulary: [N] int64 in 0 .. V - 1; all must be shared."""
        if self.ids is None:
            return labels
        return torch.searchsorted(self.ids_on(labels.device), labels)

    def ids_on(self, device: torch.device) -> Tensor:
        """Return the ids [V] on `device`, copied there once: a copy for each batch would make the host wait."""
        if device not in self._copies:
            self._copies[device] = self._range.to(device) if self.ids is None else self.ids.to(device)
        return self._copies[device]

    def unshared(self, input_ids: Tensor) -> list[int]:
        """Return the distinct token ids in `input_ids`, of any shape, that are not shared, ascending."""
        distinct = torch.as_tensor(input_ids).unique().cpu()
        if self.ids is None:
            return distinct[distinct >= self.size].tolist()
        known = self._known[distinct.clamp(max=len(self._known) - 1)]
        return distinct[~known | (distinct >= len(self._known))].tolist()

    @cached_property
    def _known(self) -> Tensor:
        ids = self._range if self.ids is None else self.ids
        return torch.zeros(int(ids.max()) + 1, dtype=torch.bool).index_fill(0, ids, True)

    @cached_property
    def _range(self) -> Tensor:
        return torch.arange(self.size)


def shared(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", student_rows: int, teacher_rows: int
) -> Vocabulary:
    """Return the part of the vocabulary that both ends share.

    student_rows, teacher_rows  rows of the two output heads

    Raises RecipeError where a token has two ids or an id two tokens. A token that only one end has is merely left out.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differences = _differences(ours, theirs)
    if differences:
        raise RecipeError([_mismatch(differences)])
    rows = min(student_rows, teacher_rows)
    common = sorted({number for token, number in ours.items() if number < rows and theirs.get(token) == number})
    if not common:
        raise RecipeError([_nothing_shared()])
    if common[-1] == len(common) - 1:
        return Vocabulary(len(common))
    return Vocabulary(len(common), torch.tensor(common))


def _differences(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """Return a line for each token with two ids, then for each id with two tokens."""
    moved = sorted((ours[token], token) for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    lines = [f"{token!r} is {number} in the student, {theirs[token]} in the teacher" for number, token in moved]
    ours_by_id, theirs_by_id = _by_id(ours), _by_id(theirs)
    explained = {token for _, token in moved}
    for number in sorted(ours_by_id.keys() & theirs_by_id.keys()):
        here, there = ours_by_id[number], theirs_by_id[number]
        if here != there and not explained & {here, there}:
            lines.append(f"id {number} is {here!r} in the student, {there!r} in the teacher")
    return lines


def _by_id(vocabulary: dict[str, int]) -> dict[int, str]:
    """Invert the map; of two spellings of one id the alphabetically first stands, whatever order they came in."""
    return {vocabulary[token]: token for token in sorted(vocabulary, reverse=True)}


def _mismatch(differences: list[str]) -> Problem:
    more = len(differences) - SHOWN
    listed = "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return Problem(
        what=f"teacher and student do not share a vocabulary: {listed}",
        why="the divergence compares the two distributions id by id, so an id must mean one token",
        fix="choose a teacher and a student of one family, with the same tokenizer",
        path=("teacher", "model"),
    )


def _nothing_shared() -> Problem:
    return Problem(
        what="teacher and student share no token",
        why="the divergence compares the two distributions token by token",
        fix="choose a teacher and a student of one family, with the same tokenizer",
        path=("teacher", "model"),
    )

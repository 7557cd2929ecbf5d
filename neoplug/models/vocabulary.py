"""The vocabulary that teacher and student share, from their tokenizers; losses compare distributions over it.

V size of the shared vocabulary, N tokens. A head may have more rows than its tokenizer has tokens (padding): such rows
represent no token and are not part of either distribution.
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
    """The token ids that represent the same token in teacher and student.

    size  V
    ids   [V] int64, ascending, on the CPU; None where they are exactly 0 .. V - 1
    """

    size: int
    ids: Tensor | None = None
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def index(self, labels: Tensor) -> Tensor:
        """Return the indices [N] int64 in the shared vocabulary, 0 .. V - 1, of token ids, which must all be shared."""
        if self.ids is None:
            return labels
        return torch.searchsorted(self.ids_on(labels.device), labels)

    def ids_on(self, device: torch.device) -> Tensor:
        """Return the ids [V] on `device`, copied there once, since each copy synchronises host and device."""
        if device not in self._copies:
            self._copies[device] = self._range.to(device) if self.ids is None else self.ids.to(device)
        return self._copies[device]

    def unshared(self, input_ids: Tensor) -> list[int]:
        """Return the distinct token ids in `input_ids`, of any shape, that are not shared, ascending."""
        distinct = torch.unique(torch.as_tensor(input_ids)).cpu()
        if self.ids is None:
            unshared = distinct >= self.size
        else:
            shared = self._is_shared[distinct.clamp(max=len(self._is_shared) - 1)]
            unshared = ~shared | (distinct >= len(self._is_shared))
        return [int(token) for token in distinct[unshared]]

    @cached_property
    def _is_shared(self) -> Tensor:
        """Whether each token id, up to the largest that is shared, is shared."""
        ids = self._range if self.ids is None else self.ids
        return torch.zeros(int(ids.max()) + 1, dtype=torch.bool).index_fill(0, ids, True)

    @cached_property
    def _range(self) -> Tensor:
        return torch.arange(self.size)


def shared(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", student_rows: int, teacher_rows: int
) -> Vocabulary:
    """Return the shared vocabulary of two tokenizers.

    student_rows, teacher_rows  rows of the two output heads

    A token that only one tokenizer has is left out. Raises RecipeError where a token has different ids, an id has
    different tokens, or no token is shared.
    """
    student_ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    differences = _differences(student_ids, teacher_ids)
    if differences:
        raise RecipeError([_mismatch(differences)])
    rows = min(student_rows, teacher_rows)
    common = sorted({id_ for token, id_ in student_ids.items() if id_ < rows and teacher_ids.get(token) == id_})
    if not common:
        raise RecipeError([_nothing_shared()])
    if common[-1] == len(common) - 1:
        return Vocabulary(len(common))
    return Vocabulary(len(common), torch.tensor(common))


def _differences(student: dict[str, int], teacher: dict[str, int]) -> list[str]:
    """Return a line for each token whose ids differ, then for each id whose tokens differ."""
    common = student.keys() & teacher.keys()
    moved = sorted((student[token], token) for token in common if student[token] != teacher[token])
    lines = [f"{token!r} is {id_} in the student, {teacher[token]} in the teacher" for id_, token in moved]
    student_tokens, teacher_tokens = _by_id(student), _by_id(teacher)
    listed = {token for _, token in moved}
    for id_ in sorted(student_tokens.keys() & teacher_tokens.keys()):
        pair = student_tokens[id_], teacher_tokens[id_]
        if pair[0] != pair[1] and not listed & set(pair):
            lines.append(f"id {id_} is {pair[0]!r} in the student, {pair[1]!r} in the teacher")
    return lines


def _by_id(vocabulary: dict[str, int]) -> dict[int, str]:
    """Return id -> token; of two tokens with one id, the alphabetically first."""
    return {vocabulary[token]: token for token in sorted(vocabulary, reverse=True)}


def _mismatch(differences: list[str]) -> Problem:
    more = len(differences) - SHOWN
    listed = "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return Problem(
        what=f"teacher and student do not share a vocabulary: {listed}",
        why="the divergence compares the two distributions id by id, so an id must be the same token in both",
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

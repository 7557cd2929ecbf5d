"""The check of `edit_batch`: an edited batch is consistent, and its tokens exist.

T tokens and N answer tokens. A batch is on the CPU when it is edited, so reading its values synchronises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoplug.answers.plain_values import Refusal, describe

if TYPE_CHECKING:
    from torch import Tensor

    from neoplug.data.batch import Batch

ANSWERS = ("positions", "labels", "rows")


@dataclass(frozen=True, eq=False)
class EditedBatch:
    """A batch as it was before `edit_batch`: copies of what the hook may change."""

    input_ids: Tensor
    lengths: list[int]
    positions: Tensor
    labels: Tensor
    rows: Tensor
    teacher: Any

    @classmethod
    def of(cls, batch: Batch) -> EditedBatch:
        """Return the state of a batch."""
        tensors = {name: getattr(batch, name).clone() for name in ("input_ids", *ANSWERS)}
        return cls(lengths=list(batch.lengths), teacher=batch.teacher, **tensors)

    def validate(self, batch: Batch, vocabulary: Any, keeps_text: bool, teacher_is_stored: bool = False) -> None:
        """Refuse a batch that a model would misread, or whose answer tokens no longer are those of the text.

        vocabulary  that the models share, a `models.vocabulary.Vocabulary`; None: any token exists
        keeps_text  whether token weights count positions in the original text
        teacher_is_stored  whether the teacher's output was stored for the original text
        """
        for name in ("input_ids", *ANSWERS):
            _validate_indices(name, getattr(batch, name))
        _validate_lengths(batch.lengths, len(batch.input_ids))
        sizes = {name: len(getattr(batch, name)) for name in ANSWERS}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} {name}" for name, size in sizes.items())
            raise Refusal(f"left {found} in the batch", "each answer token has one of each")
        if len(batch.positions) and not 0 <= int(batch.positions.min()) <= int(batch.positions.max()) < batch.tokens:
            outside = batch.positions[(batch.positions < 0) | (batch.positions >= batch.tokens)]
            what = f"left position {int(outside[0])} in a batch of {batch.tokens} tokens"
            raise Refusal(what, "a position is the index of the token that predicts the answer token")
        self._validate_tokens("labels", batch.labels, self.labels, vocabulary)
        self._validate_tokens("input_ids", batch.input_ids, self.input_ids, vocabulary)
        self._validate_rows(batch)
        if teacher_is_stored:
            self._validate_stored_text(batch)
        if keeps_text or self.teacher is not None:
            reader = "token weights read" if keeps_text else "the teacher's own text has"
            self._validate_text(batch, f"{reader} the answer tokens of the original text")

    def _validate_tokens(self, name: str, tokens: Tensor, before: Tensor, vocabulary: Any) -> None:
        """Refuse tokens that the hook introduced and that do not exist in the shared vocabulary."""
        import torch

        new = _new(tokens, before)
        if not new:
            return
        negative = [token for token in new if token < 0]
        unknown = negative or (vocabulary.unshared(torch.tensor(new)) if vocabulary is not None else [])
        if unknown:
            why = "the models share no token of this id"
            fix = "to leave out answer tokens, shorten `positions`, `labels` and `rows` together"
            raise Refusal(f"left {unknown[0]} in `{name}`, which is no token", why, fix if name == "labels" else "")

    def _validate_rows(self, batch: Batch) -> None:
        """Refuse source rows that are not those of their positions, as where only some of the tensors are shortened."""
        import torch

        if new := _new(batch.rows, self.rows):
            raise Refusal(
                f"left row {new[0]} in `rows`, which is not one of the batch", "rows name the source in errors"
            )
        if list(batch.lengths) == self.lengths:
            row_of = torch.full((batch.tokens,), -1).index_copy(0, self.positions, self.rows)[batch.positions]
            if ((row_of >= 0) & (row_of != batch.rows)).any():
                raise Refusal("left `rows` that are not those of `positions`", "each answer token has one of each")

    def _validate_stored_text(self, batch: Batch) -> None:
        """Refuse another text than the one that the teacher's output is stored for."""
        why = "the teacher's output is stored, for the original text"
        if list(batch.lengths) != self.lengths or not batch.input_ids.equal(self.input_ids):
            raise Refusal("changed `input_ids`", why, "leave the plugin out, or leave `teacher.cache` out")
        self._validate_text(batch, why)

    def _validate_text(self, batch: Batch, why: str) -> None:
        """Refuse other documents, and positions that were not those of answer tokens before."""
        if list(batch.lengths) != self.lengths or batch.teacher is not self.teacher:
            raise Refusal("changed the lengths of documents", why, "keep `input_ids` as long as they are")
        if new := _new(batch.positions, self.positions):
            raise Refusal(f"left position {new[0]}, which predicted no answer token", why)


def _new(values: Tensor, before: Tensor) -> list[int]:
    """Return the distinct values that did not occur before, ascending."""
    import torch

    new: list[int] = torch.unique(values[~torch.isin(values, before)]).tolist()
    return new


def _validate_indices(name: str, value: Any) -> None:
    """Refuse what is no [N] int64 on the CPU."""
    import torch

    right = isinstance(value, torch.Tensor) and value.dim() == 1 and value.dtype == torch.int64
    if not right or value.device.type != "cpu":
        raise Refusal(f"left {describe(value)} in `{name}`, where a tensor [N] of int64 on the CPU is expected")


def _validate_lengths(lengths: Any, tokens: int) -> None:
    """Refuse lengths that are not those of documents with so many tokens in all."""
    right = isinstance(lengths, list | tuple) and all(isinstance(length, int) and length > 0 for length in lengths)
    if not right:
        raise Refusal(f"left {describe(lengths)} in `lengths`, where a list of whole numbers above 0 is expected")
    if sum(lengths) != tokens:
        what = f"left `lengths` that add up to {sum(lengths)} in a batch of {tokens} tokens"
        raise Refusal(what, "a document that begins elsewhere would be read as part of another")

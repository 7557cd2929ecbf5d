"""The training micro-batches of any step, as the models read them: documents, then batches, edited by the plugins.

For a GPU they are made one step ahead in a thread, and copied from pinned memory, so that it does not wait for them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from neoplug.data import BatchSampler, Corpus, without_answers
from neoplug.data.batch import Batch, Document, collate, concatenated, positions_in_answers
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.seeds import generator

StepBatches = list[tuple[Batch, bool]]


def progress_at(step: int, total_steps: int) -> float:
    """Return the progress of a run at a step, which counts from 0: 0.0 at the first step, 1.0 at the last."""
    return step / max(1, total_steps - 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchSource:
    """Makes the micro-batches of one rank.

    vocabulary         that the models share, for the check of edited batches; None: any token exists
    teacher_is_stored  whether the teacher's output was stored for these texts, so that no edit may change them
    """

    corpus: Corpus
    sampler: BatchSampler
    plugins: Plugins
    seed: int
    rank: int
    vocabulary: Vocabulary | None = None
    teacher_is_stored: bool = False

    def micro_batches(self, step: int, progress: float) -> Iterator[tuple[Batch, bool]]:
        """Yield the micro-batches of a step on the CPU, after all edits, each with whether it has documents.

        A rank without documents left processes one without answer tokens, so that all ranks take part in every
        reduction.
        """
        edited, weighted = self.plugins.implements("edit_batch"), self.plugins.named("token_weight")
        for rows in self.sampler.micro_batches(step, self.rank):
            texts = [(row, documents) for row in rows if (documents := self.edited(step, row, progress))]
            if edited and texts:
                batch = concatenated([self.edited_batch(step, row, found, progress) for row, found in texts])
            else:
                documents = [document for _, found in texts for document in found]
                batch = collate(documents or [without_answers(self.corpus.rows[rows[0] if rows else 0][0])])
            batch.epoch = self.epoch(step)
            if weighted:
                batch.in_answer = positions_in_answers(batch.documents)[batch.positions]
            yield batch, bool(texts)

    @property
    def is_edited(self) -> bool:
        """Return whether a plugin edits documents or batches."""
        return bool(self.plugins.functions("edit_documents") or self.plugins.functions("edit_batch"))

    def edited(self, step: int, row: int, progress: float) -> Sequence[Document]:
        """Return the documents of a row after `edit_documents`."""
        documents: Sequence[Document] = self.corpus.rows[row]
        for name, edit in self.plugins.functions("edit_documents").items():
            documents = documents and edit(
                documents=documents,
                progress=progress,
                rng=generator(self.seed, name, step, row),
                vocabulary=self.vocabulary,
                longest=max(self.corpus.longest.values()),
                teacher_is_stored=self.teacher_is_stored,
            )
        return documents

    def edited_batch(self, step: int, row: int, documents: Sequence[Document], progress: float) -> Batch:
        """Return the batch of a row's documents after `edit_batch`.

        A row is edited alone, so that neither ranks nor micro-batches change what becomes of it.
        """
        batch = replace(collate(documents), epoch=self.epoch(step))
        for name, edit in self.plugins.functions("edit_batch").items():
            edit(
                batch=batch,
                progress=progress,
                rng=generator(self.seed, name, "edit_batch", step, row),
                vocabulary=self.vocabulary,
                keeps_text=bool(self.plugins.named("token_weight")),
                teacher_is_stored=self.teacher_is_stored,
            )
        return batch

    def unedited(self, step: int, rows: Sequence[int]) -> Batch:
        """Return the micro-batch of these rows before all edits."""
        documents = [document for row in rows for document in self.corpus.rows[row]]
        return replace(collate(documents), epoch=self.epoch(step))

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0."""
        return step // self.sampler.steps_per_epoch


@contextmanager
def step_batches(
    source: BatchSource, device: torch.device, first: int, total_steps: int
) -> Iterator[Callable[[int], StepBatches]]:
    """Yield a function, step -> its micro-batches, for the steps from `first` in their order.

    On a GPU they are in pinned memory, and while the function's caller uses those of one step, a thread makes those of
    the next, or the error that the caller then gets. It ends with the context. Where a plugin edits documents or
    batches there is no thread: a plugin is called in the main one, and in its turn.
    """

    def made(step: int) -> StepBatches:
        pairs = source.micro_batches(step, progress_at(step, total_steps))
        return [(batch if device.type == "cpu" else batch.pin_memory(), real) for batch, real in pairs]

    if device.type == "cpu" or source.is_edited:
        yield made
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="neoplug-batches") as thread:
        following: dict[int, Future[StepBatches]] = {}

        def taken(step: int) -> StepBatches:
            batches = following.pop(step) if step in following else thread.submit(made, step)
            if step + 1 < total_steps:
                following[step + 1] = thread.submit(made, step + 1)
            return batches.result()

        yield taken

"""The training micro-batches of any step, as the models read them: documents, then batches, edited by the plugins.

For a GPU they are made one step ahead in a thread, and copied from pinned memory, so that it does not wait for them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from neoplug.data import BatchSampler, Corpus, without_answers
from neoplug.data.batch import Batch, Document, collate, positions_in_answers
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
        edits, weighted = self.plugins.functions("edit_batch"), self.plugins.named("token_weight")
        limits = {  # for the check of the edited batch
            "vocabulary": self.vocabulary,
            "keeps_text": bool(weighted),
            "teacher_is_stored": self.teacher_is_stored,
        }
        for number, rows in enumerate(self.sampler.micro_batches(step, self.rank)):
            documents = [document for row in rows for document in self.edited(step, row, progress)]
            batch = self.collate(step, documents or [without_answers(self.corpus.rows[rows[0] if rows else 0][0])])
            for name, edit in edits.items() if documents else ():
                rng = generator(self.seed, name, step, number, self.rank)
                edit(batch=batch, progress=progress, rng=rng, **limits)
            if weighted:
                batch.in_answer = positions_in_answers(batch.documents)[batch.positions]
            yield batch, bool(documents)

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

    def unedited(self, step: int, rows: Sequence[int]) -> Batch:
        """Return the micro-batch of these rows before all edits."""
        return self.collate(step, [document for row in rows for document in self.corpus.rows[row]])

    def collate(self, step: int, documents: Sequence[Document]) -> Batch:
        """Return the micro-batch of these documents."""
        return replace(collate(documents), epoch=step // self.sampler.steps_per_epoch)


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

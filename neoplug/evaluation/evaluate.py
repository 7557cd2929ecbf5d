"""Evaluation of student and teacher at temperature 1 on held-out text: sums per document, and metrics from them.

Each quantity is summed in float64 over the answer tokens of each document, and every metric is computed from the table
of these sums, so that confidence intervals over documents can be computed later. The table has a row for each document,
ordered by `number`; in the run directory it is `evaluation/NAME.parquet` (NAME: before, after, teacher or step-N):

    document  string   the document's content hash
    number    int64    the document's number among the held-out documents
    tokens    int64    its answer tokens
    ...       float64  the sum over its answer tokens of each quantity in `Measure.sums` (`registry.measures`)

The metrics forward_kl, reverse_kl, jsd, cross_entropy, entropy and top1_agreement are means per token of the column of
that name. The other columns are parts of ratios, where p is the teacher's and q the student's probability, and y is 1
at the answer token: top10_mass and teacher_top10_mass are q and p of the teacher's ten most probable tokens; kd_ce_dot
is <q - p, q - y>, kd_squared_norm |q - p|^2 and ce_squared_norm |q - y|^2. Columns that compare with a teacher are
absent without one; the teacher's own table has cross_entropy and entropy.

N answer tokens of a batch, t of a tile, D documents, V shared vocabulary, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neoplug.data.batch import Batch, Document, collate
from neoplug.distributed.world import World
from neoplug.models.language_model import LanguageModel
from neoplug.registry.measures import MEASURES, Measure
from neoplug.teachers.base import Teacher
from neoplug.training.diagnostics import COLUMNS, STUDENT_COLUMNS, kd_ce_cosine, token_diagnostics, top10_mass_share
from neoplug.training.objective import log_probabilities

if TYPE_CHECKING:
    import pyarrow

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of one model.

    values     metric name -> value, and "probes" -> results of the probes, as in result.json
    documents  the sums per document that the metrics were computed from
    """

    values: dict[str, Any]
    documents: pyarrow.Table


def held_out_batches(documents: Sequence[Document], size: int, device: torch.device) -> list[Batch]:
    """Return the documents in batches of `size`, on the device."""
    return [collate(documents[at : at + size]).to(device) for at in range(0, len(documents), size)]


@torch.no_grad()
def evaluate(
    student: LanguageModel, teacher: Teacher | None, batches: Sequence[Batch], world: World
) -> tuple[pyarrow.Table, pyarrow.Table | None]:
    """Return the tables of sums per document of the student and of the teacher, the same on every rank.

    Every rank is given all batches and evaluates every `world.size`-th of them. A batch is never divided, so the sums
    of a document do not depend on the number of ranks.
    """
    share = batches[world.rank :: world.size]
    training = student.module.training
    student.module.eval()
    sums = [_document_sums(student, teacher, batch) for batch in share]
    if len(share) * world.size < len(batches):  # all ranks run a sharded model equally often
        _document_sums(student, teacher, batches[0])
    student.module.train(training)
    columns = _columns(teacher)
    values = torch.cat([*sums, torch.zeros(0, len(columns), dtype=torch.float64, device=student.device)]).cpu()
    documents = [document for batch in share for document in batch.documents]
    sums_of = dict(zip(columns, values.t().numpy(), strict=True))
    of_student = {name: sums_of.get(f"student_{name}", sums_of.get(name)) for name in _sum_names(teacher)}
    student_table = _table(documents, of_student, world)
    if teacher is None:
        return student_table, None
    return student_table, _table(documents, {name: sums_of[f"teacher_{name}"] for name in _sum_names(None)}, world)


def metrics_of(table: pyarrow.Table) -> dict[str, float]:
    """Return the metrics by name: those of `MEASURES` whose sums the table has."""
    tokens = max(int(table["tokens"].to_numpy().sum()), 1)
    columns = [name for name in table.column_names if name not in ("document", "number", "tokens")]
    mean = {name: float(table[name].to_numpy().sum()) / tokens for name in columns}
    return {name: _value(measure, mean) for name, measure in MEASURES.items() if mean.keys() >= set(measure.sums)}


def _value(measure: Measure, mean: Mapping[str, float]) -> float:
    """Return the value of a metric; `mean` holds the means per token of the table's columns."""
    match measure.name:
        case "perplexity":
            return math.exp(min(mean["cross_entropy"], 700.0))
        case "top10_mass_share":
            return top10_mass_share(mean)
        case "kd_ce_cosine":
            return kd_ce_cosine(mean)
    return mean[measure.name]


def _sum_names(teacher: Teacher | None) -> list[str]:
    """Return the names of the sums in the table of a model that is compared with `teacher`, or with none."""
    measures = [measure for measure in MEASURES.values() if teacher is not None or not measure.needs_teacher]
    return list(dict.fromkeys(name for measure in measures for name in measure.sums))


def _columns(teacher: Teacher | None) -> tuple[str, ...]:
    """Return the names of the columns of `_document_sums`."""
    return STUDENT_COLUMNS if teacher is None else COLUMNS + DIVERGENCES


def _document_sums(student: LanguageModel, teacher: Teacher | None, batch: Batch) -> Tensor:
    """Return the sums of each document, [D, C] float64 on the student's device, without a synchronisation.

    There is one sum for each document instead of an `index_add_` for all, which on a GPU is not deterministic.
    """
    labels = student.head.vocabulary.index(batch.labels)
    signal = None if teacher is None else teacher.signal(batch)
    values = torch.zeros(batch.answer_tokens, len(_columns(teacher)), device=student.device)
    for rows, log_q, log_p in log_probabilities(student.head, student.hidden(batch), signal):
        parts = [token_diagnostics(log_q, log_p, labels[rows])]
        values[rows] = torch.cat(parts if log_p is None else [*parts, _divergences(log_p, log_q)], -1)
    counts = [document.answer_tokens for document in batch.documents]
    return torch.stack([part.sum(0, dtype=torch.float64) for part in torch.split(values, counts)])


def _divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the DIVERGENCES, [t, 3], between teacher and student, given their log-probabilities [t, V]."""
    p, q, difference = log_p.exp(), log_q.exp(), log_p - log_q
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    forward, reverse = (p * difference).sum(-1), -(q * difference).sum(-1)
    jsd = (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2
    return torch.stack([forward, reverse, jsd], -1)


def _table(documents: Sequence[Document], sums: Mapping[str, Any], world: World) -> pyarrow.Table:
    """Return the table of the documents of all ranks; the arguments are the documents of this rank and their sums."""
    import pyarrow

    own = pyarrow.table(
        {
            "document": pyarrow.array([document.content_hash for document in documents], pyarrow.string()),
            "number": pyarrow.array([document.number for document in documents], pyarrow.int64()),
            "tokens": pyarrow.array([document.answer_tokens for document in documents], pyarrow.int64()),
            **{name: pyarrow.array(values, pyarrow.float64()) for name, values in sums.items()},
        }
    )
    return pyarrow.concat_tables(world.gather([own])).sort_by("number").combine_chunks()

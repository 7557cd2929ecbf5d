"""Making of a token store: all rows are ingested, split into training and held-out rows, packed and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.ingest.pipeline import IngestPipeline
from neoplug.data.ingest.recipe_sources import RecipeSource
from neoplug.data.ingest.report import Report, SourceCounts
from neoplug.data.packing import pack
from neoplug.data.split import split
from neoplug.data.store.spool import Spool
from neoplug.data.store.token_files import write_record
from neoplug.errors import RecipeError
from neoplug.files.contents import recorded_folder

if TYPE_CHECKING:
    from neoplug.recipe import Data


def make_store(
    folder: Path,
    data: Data,
    encoder: RowEncoder,
    training: Mapping[str, RecipeSource],
    evaluation: RecipeSource | None,
) -> None:
    """Tokenise the rows of all sources and write the store to `folder`, atomically.

    training    the training sources, by name
    evaluation  the evaluation source; None where rows of the training sources are held out
    raises      RecipeError where a source, its columns or the split cannot be used, or no row is left
    """
    report = Report(data.max_length, packing=data.packing)
    with recorded_folder(folder) as target:
        with Spool(target) as spool:
            pipeline = IngestPipeline(data, encoder, spool, report)
            rows_of = _ingest_training(pipeline, training)
            if evaluation is None:
                held_out = _split(pipeline, list(training.values()), rows_of)
            else:
                held_out = _ingest_evaluation(pipeline, evaluation)
            report.train, report.held_out = spool.split_counts(~held_out), spool.split_counts(held_out)
            if not report.held_out.documents:
                source = evaluation or next(iter(training.values()))
                raise RecipeError([pipeline.no_row_left("no evaluation row is left", source)])
            fingerprint = spool.write(target, *_store_order(pipeline, training, rows_of, held_out))
        write_record(target, fingerprint=fingerprint, report=TypeAdapter(Report).dump_python(report, mode="json"))


def _ingest_training(pipeline: IngestPipeline, training: Mapping[str, RecipeSource]) -> list[slice]:
    """Ingest the training sources; return for each the range of its rows in the spool."""
    rows_of, first = [], 0
    for name, source in training.items():
        counts = pipeline.report.read[name] = SourceCounts(source.name)
        rows_of.append(pipeline.ingest(source, counts, first))
        first += counts.rows
    return rows_of


def _ingest_evaluation(pipeline: IngestPipeline, source: RecipeSource) -> np.ndarray:
    """Ingest the evaluation source; return [rows] bool: which rows of the spool are held out, namely its own."""
    counts = pipeline.report.eval_read = SourceCounts(source.name)
    rows = pipeline.ingest(source, counts)
    digests = pipeline.spool.digests
    pipeline.report.leaked = int(np.isin(digests[rows], digests[: rows.start]).sum())
    held_out = np.zeros(len(digests), bool)
    held_out[rows] = True
    return held_out


def _split(pipeline: IngestPipeline, sources: Sequence[RecipeSource], rows_of: Sequence[slice]) -> np.ndarray:
    """Return [rows] bool: which rows are held out: each source's share, and equal rows of the other sources."""
    digests, parts = pipeline.spool.digests, []
    for source, rows in zip(sources, rows_of, strict=True):
        with source.labelled_errors():
            parts.append(split(digests[rows], pipeline.data.held_out))
    held_out = np.concatenate(parts)
    return held_out if len(sources) == 1 else np.isin(digests, digests[held_out])


def _store_order(
    pipeline: IngestPipeline, training: Mapping[str, RecipeSource], rows_of: Sequence[slice], held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the arguments `order` and `bounds` of `Spool.write`; count the training rows in the report.

    A packed row has documents of one source only.
    """
    spool, data = pipeline.spool, pipeline.data
    orders, bounds = [], [np.zeros(1, np.int64)]
    for (name, source), rows in zip(training.items(), rows_of, strict=True):
        chosen = np.zeros(spool.rows, bool)
        chosen[rows] = ~held_out[rows]
        documents, counts = spool.documents_of(chosen), pipeline.report.read[name]
        if not len(documents):
            raise RecipeError([pipeline.no_row_left("no row to train on is left", source)])
        order, row_bounds = np.arange(len(documents)), np.arange(len(documents) + 1)
        if data.packing:
            order, row_bounds = pack(spool.max_text_lengths[documents], data.max_length)
        kept = spool.split_counts(chosen)
        counts.training_rows, counts.tokens, counts.answer_tokens = len(row_bounds) - 1, kept.tokens, kept.answer_tokens
        orders.append(documents[order])
        bounds.append(bounds[-1][-1] + row_bounds[1:])
    return np.concatenate([*orders, spool.documents_of(held_out)]), np.concatenate(bounds)

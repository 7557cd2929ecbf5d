"""A store of tokens is made: all rows are taken in, split, packed, and written in the order of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from neoplug.data.encode.tokenise import Tokeniser
from neoplug.data.ingest.intake import Intake
from neoplug.data.ingest.parts import Part
from neoplug.data.ingest.report import Read, Report
from neoplug.data.packing import pack
from neoplug.data.split import split
from neoplug.data.store.spool import Spool
from neoplug.data.store.token_files import write_record
from neoplug.errors import RecipeError
from neoplug.files import folder_atomically

if TYPE_CHECKING:
    from neoplug.recipe import Data


def make_store(folder: Path, data: Data, tokeniser: Tokeniser, training: Mapping[str, Part], kept: Part | None) -> None:
    """Tokenise the rows of all sources into the store `folder`.

    training  the sources to train on, by name
    kept      the source to measure on; None where rows of the others are held out
    raises    RecipeError where a source, its columns or the split cannot be used, or nothing is left of them
    """
    report = Report(data.max_length, packing=data.packing)
    with folder_atomically(folder) as target:
        with Spool(target / "spool") as spool:
            intake = Intake(data, tokeniser, spool, report)
            places = _taken(intake, training)
            held_out = _held_out(intake, list(training.values()), places) if kept is None else _kept(intake, kept)
            report.train, report.held_out = spool.side(~held_out), spool.side(held_out)
            if not report.held_out.documents:
                part = kept or next(iter(training.values()))
                raise RecipeError([intake.nothing_left("no row to measure on is left", part)])
            fingerprint = spool.write(target, *_arranged(intake, training, places, held_out))
        write_record(target, fingerprint=fingerprint, report=TypeAdapter(Report).dump_python(report, mode="json"))


def _taken(intake: Intake, training: Mapping[str, Part]) -> list[slice]:
    """Take in the rows to train on; return which of the spool's rows are each source's."""
    places, first = [], 0
    for name, part in training.items():
        read = intake.report.read[name] = Read(part.source)
        places.append(intake.take(part, read, first))
        first += read.rows
    return places


def _kept(intake: Intake, part: Part) -> np.ndarray:
    """Take in the rows to measure on; return [rows] bool: which of the spool's rows they are."""
    read = intake.report.eval_read = Read(part.source)
    before = intake.take(part, read).start
    digests = intake.spool.digests
    intake.report.leaked = int(np.isin(digests[before:], digests[:before]).sum())
    return np.arange(len(digests)) >= before


def _held_out(intake: Intake, parts: Sequence[Part], places: Sequence[slice]) -> np.ndarray:
    """Return [rows] bool: which rows are held out of their sources; what one holds out, none trains on."""
    digests, found = intake.spool.digests, []
    for part, place in zip(parts, places, strict=True):
        with part.naming():
            found.append(split(digests[place], intake.data.held_out))
    held_out = np.concatenate(found)
    return held_out if len(parts) == 1 else np.isin(digests, digests[held_out])


def _arranged(
    intake: Intake, training: Mapping[str, Part], places: Sequence[slice], held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents' numbers, row by row and then those held out, and where each row begins.

    A row holds documents of one source.
    """
    spool, data = intake.spool, intake.data
    orders, bounds = [], [np.zeros(1, np.int64)]
    for (name, part), place in zip(training.items(), places, strict=True):
        theirs = np.zeros(spool.rows, bool)
        theirs[place] = ~held_out[place]
        documents, read = spool.documents_of(theirs), intake.report.read[name]
        if not len(documents):
            raise RecipeError([intake.nothing_left("no row to train on is left", part)])
        order, begins = np.arange(len(documents)), np.arange(len(documents) + 1)
        if data.packing:
            order, begins = pack(spool.lengths[documents], data.max_length)
        side = spool.side(theirs)
        read.training_rows, read.tokens, read.answer_tokens = len(begins) - 1, side.tokens, side.answer_tokens
        orders.append(documents[order])
        bounds.append(bounds[-1][-1] + begins[1:])
    return np.concatenate([*orders, spool.documents_of(held_out)]), np.concatenate(bounds)

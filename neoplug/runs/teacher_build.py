"""Building of a teacher's cache: the teacher is run on the documents that have no record yet.

    inputs = with_cache(checked, inputs, world, progress)     builds what is missing; without `teacher.cache` nothing

One process at a time writes to a cache: another waits, and then finds the documents that the first has stored. Of
several ranks the main one holds the lock, and each runs its share of the documents. A shard is written when it is full,
so a process that is killed loses no more than that, and the next one goes on from there. Files that are damaged, or of
another cache, are reported and removed, and their documents are computed again.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from neoplug.data.batch import Document, collate
from neoplug.errors import DamageError, DiskError, RunError, UsageError
from neoplug.evaluation.probes import probe
from neoplug.files import content_hash, folder_atomically, lock, read_json, remove_abandoned, write_atomically
from neoplug.files.contents import RECORD, damage, record, recorded_folder
from neoplug.models.load import load_config
from neoplug.recipe.cache_checks import SECTION
from neoplug.runs.cache_folder import TeacherCache, teachers_folder
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.teacher_documents import (
    DOCUMENTS,
    Lookup,
    batches_by_part,
    look_up,
    rows_read,
    stored_cache,
    teacher_texts,
)
from neoplug.runs.teacher_key import parts_of_key, plugin_identity
from neoplug.seeds import generator
from neoplug.teachers.cache_files import (
    EXACT,
    FIX,
    HEAD,
    HEADER,
    HELD_OUT,
    PROBES,
    SOURCE,
    TEACHER,
    TRAIN,
    Header,
    Shards,
    ShardWriter,
    key_of,
)

if TYPE_CHECKING:
    from neoplug.distributed.world import World
    from neoplug.models.head import Head
    from neoplug.models.language_model import LanguageModel
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.inputs import RunInputs
    from neoplug.runs.progress import Progress

logger = logging.getLogger(__name__)

RESULTS = "results.json"  # of the probes
SAMPLE_TOKENS, SAMPLE_BATCHES = 4096, 64  # answer tokens that `fit_cache` sees at least, in at most so many batches


def with_cache(
    checked: ResolvedRecipe, inputs: RunInputs, world: World, progress: Progress, *, training: bool = True
) -> RunInputs:
    """Return the inputs of a run with the teacher's cache, complete for its documents; unchanged where it has none.

    training  whether the run reads training documents, and not only held-out ones

    Raises:
        RecipeError: a cache that was built elsewhere cannot be used.
        UsageError: the cache cannot be written.
    """
    if checked.recipe.teacher is None or not checked.recipe.teacher.cache:
        return inputs
    progress.phase("opening the teacher's cache")
    rows = rows_read(checked, inputs, world.size) if training else np.zeros(0, np.int64)
    if folder := checked.plugins.one("cache_folder"):
        cache, probes = stored_cache(checked, inputs, folder, rows), stored_probes(folder, checked, inputs)
        if not probes and checked.plugins.implements("on_evaluate"):
            logger.warning("%s has no results of these probes for the teacher, on these held-out documents", folder)
        return replace(inputs, cache=replace(cache, probes=probes))
    try:
        return replace(inputs, cache=CacheBuilder(checked, inputs, world, progress, rows).complete())
    except DiskError as error:
        fix = "free some disk space there, or set NEOPLUG_HOME to a folder on another disk"
        raise UsageError(f"the teacher's cache cannot be stored: {error.path}: {error.reason}\nfix: {fix}") from error


@dataclass(eq=False)
class CacheBuilder:
    """Completes the cache of a recipe for the documents of its run. Every rank has one.

    rows    numbers of the training rows that the run reads
    before  called on the main process with the header and with what is missing, before it is computed
    """

    checked: ResolvedRecipe
    inputs: RunInputs
    world: World
    progress: Progress
    rows: np.ndarray
    before: Callable[[Header, dict[str, Lookup]], None] = lambda header, missing: None

    def __post_init__(self) -> None:
        self.loader = ModelLoader(self.checked, self.inputs, self.world)
        self.parts = parts_of_key(self.checked, self.inputs, self.loader.dtype("teacher"))
        self.folder = teachers_folder() / key_of(self.parts)
        self.batches = batches_by_part(self.checked, self.inputs, self.rows)
        ((name, options),) = self.checked.resolved()["teacher"]["cache"].items()
        self.kind = {"name": name, "options": options}
        (self.plugin,) = self.checked.plugins.section(SECTION).values()
        self.teacher: LanguageModel | None = None
        self.logits: Callable[[Tensor], Tensor] | None = None

    def complete(self) -> TeacherCache:
        """Build what is missing; return the cache."""
        with ExitStack() as stack:
            if self.world.is_main:
                stack.enter_context(lock(self.folder, on_wait=self._report_wait))
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_abandoned(self.folder)
            header = self._complete_header()
            missing = self.world.broadcast(self._missing(header) if self.world.is_main else {})
            if self.world.is_main:
                self.before(header, missing)
            for part, lookup in missing.items():
                self._compute(part, lookup, header)
            self.world.wait()
            probes = self._complete_probes()
            self._free()
            self.world.wait()
        return TeacherCache(self.folder, header, self.checked.plugins, probes)

    def _report_wait(self) -> None:
        self.progress.phase("waiting for another process, which builds this teacher's cache")

    def _complete_header(self) -> Header:
        """Return the header; write it, and the files next to it, where they are missing or damaged."""
        header, is_whole = self._read_header() if self.world.is_main else (None, False)
        header, is_whole = self.world.broadcast((header, is_whole))
        if header is not None and is_whole:
            return header
        teacher = self._load()
        if self.world.is_main:
            header = header or self._new_header(teacher)
            self._write_files(teacher, header)
        header = self.world.broadcast(header)
        if header is None or Header.read(self.folder) != header:
            raise RunError(
                f"this process does not see the teacher's cache in {self.folder}, which another one writes\n"
                "fix: set NEOPLUG_HOME to a folder that all machines of the run share"
            )
        return header

    def _read_header(self) -> tuple[Header | None, bool]:
        """Return the stored header, None without one that can be used; and whether the other files are whole."""
        if not (self.folder / HEADER).exists():
            return None, False
        if found := damage(self.folder, HEADER):
            self._report(found, "it is written again")
            return None, False
        try:
            header = Header.read(self.folder)
        except DamageError as error:
            self._report(f"{error.file} {error.what}", "it is written again")
            return None, False
        if header.parts != self.parts:
            self._report("its header is that of another teacher or kind", "it is written again")
            return None, False
        if found := damage(self.folder):
            self._report(found, "it is written again")
        return header, not found

    def _report(self, what: str, consequence: str) -> None:
        logger.warning("the teacher's cache %s is damaged: %s; %s", self.folder, what, consequence)

    def _new_header(self, teacher: LanguageModel) -> Header:
        """Return a header with the numbers that `fit_cache` returns for a sample of the training documents."""
        states = torch.cat(list(self._sample(teacher)))
        fitted = self.checked.plugins.one("fit_cache", states=states, logits=self.logits) or {}
        return Header(
            parts=self.parts,
            kind=self.kind,
            draws=getattr(self.plugin, "draws", 1),
            fitted={name: float(value) for name, value in sorted(fitted.items())},
            hidden_size=states.shape[1],
            multiplier=teacher.head.multiplier,
            cap=teacher.head.cap,
        )

    def _sample(self, teacher: LanguageModel) -> Iterator[Tensor]:
        """Yield the teacher's states of some batches: all training documents have the same chance to be in them."""
        batches = self.batches[TRAIN] or self.batches[HELD_OUT]
        tokens = 0
        for number in self.sample_order()[:SAMPLE_BATCHES]:
            states, _ = states_of(teacher, batches[number])
            tokens += len(states)
            yield states
            if tokens >= SAMPLE_TOKENS:
                return

    def sample_order(self) -> list[int]:
        """Return the numbers of the training batches in a random order, the same for the same data."""
        batches = self.batches[TRAIN] or self.batches[HELD_OUT]
        return torch.randperm(len(batches), generator=generator(0, "teacher cache", "sample")).tolist()

    def _write_files(self, teacher: LanguageModel, header: Header) -> None:
        """Write the files that are needed to read the records, then the record of their contents."""
        assert self.inputs.teacher is not None
        located, folder = self.inputs.teacher, self.folder
        write_atomically(folder / HEAD, save(teacher.head.effective_linear(header.hidden_size).state_dict()))
        rmtree(folder / TEACHER, ignore_errors=True)
        with folder_atomically(folder / TEACHER) as draft:
            load_config(located, ("teacher", "model")).save_pretrained(draft)
            self.inputs.teacher_tokenizer.save_pretrained(draft)
        adapter = located.adapter.source if located.adapter else None
        source = {"model": located.source, "revision": located.revision, "adapter": adapter}
        write_atomically(folder / SOURCE, json.dumps(source, indent=2) + "\n")
        header.write(folder)
        (folder / RECORD).unlink(missing_ok=True)
        record(folder, HEADER, HEAD, SOURCE, TEACHER)

    def _missing(self, header: Header) -> dict[str, Lookup]:
        """Return TRAIN and HELD_OUT -> what has no record, after all shards that the run reads were checked."""
        missing = {}
        for part, batches in self.batches.items():
            folder = self.folder / part
            shards = Shards(folder, header.sha256)
            damaged, lookup = shards.damaged, look_up(shards, batches)
            while damaged := [*damaged, *shards.validate(lookup.shards)]:
                for error in damaged:
                    self._report(f"{part}/{error.file.name} {error.what}", "its documents are computed again")
                    error.file.unlink(missing_ok=True)
                shards = Shards(folder, header.sha256)
                damaged, lookup = shards.damaged, look_up(shards, batches)
            missing[part] = lookup
        return missing

    def _compute(self, part: str, lookup: Lookup, header: Header) -> None:
        """Compute and store this rank's share of what is missing."""
        if not lookup.absent:
            return
        folder = self.folder / part
        shards, writer = Shards(folder, header.sha256), ShardWriter(folder, header.sha256)
        share = lookup.batches[self.world.rank :: self.world.size].tolist()
        line = f"computing the teacher's output, {lookup.absent} {DOCUMENTS[part]}: batch"
        self.progress.advanced(line, 0, len(share))
        try:
            for done, number in enumerate(share, 1):
                scored = [document for document in self.batches[part][number] if document.answer_tokens]
                found, _ = shards.find([text.content_hash for text in teacher_texts(scored)])
                absent = [document for document, shard in zip(scored, found, strict=True) if shard < 0]
                _, records = self.encode(absent, header, exactly=part == HELD_OUT)
                for document, draws in zip(teacher_texts(absent), records, strict=True):
                    writer.add(document.content_hash, draws, document.answer_tokens)
                self.progress.advanced(line, done, len(share))
        finally:
            writer.flush()  # a signal or an error loses nothing

    def encode(
        self, documents: Sequence[Document], header: Header, *, exactly: bool = False
    ) -> tuple[Tensor, list[list[dict[str, Tensor]]]]:
        """Run the teacher on documents; return its states [N, H] and, for each document, a record of each draw.

        exactly  store the states in float32, as of held-out documents
        """
        states, counts = states_of(self._load(), documents)
        encode = partial(self.checked.plugins.one, "encode_teacher", logits=self.logits, fitted=header.fitted)
        records = []
        for text, part in zip(teacher_texts(documents), torch.split(states, counts), strict=True):
            rngs = (generator(0, "teacher cache", text.content_hash, draw) for draw in range(header.draws))
            draws = [{EXACT: part}] if exactly else [encode(states=part, rng=rng) for rng in rngs]
            records.append([{name: value.cpu().contiguous() for name, value in draw.items()} for draw in draws])
        return states, records

    def teacher_head(self) -> Head:
        """Return the output head of the loaded teacher."""
        return self._load().head

    def _complete_probes(self) -> dict[str, Any]:
        """Return the results of the recipe's probes for the teacher; run them where they are not stored."""
        found = stored_probes(self.folder, self.checked, self.inputs) if self.world.is_main else {}
        found = self.world.broadcast(found)
        if found or not self.checked.plugins.implements("on_evaluate"):
            return found
        teacher, batches = self._load(), self.loader.held_out()
        self.progress.phase("evaluating the teacher with the recipe's probes")
        texts = [batch.for_teacher() for batch in batches]
        found = probe(self.checked.plugins, teacher, None, texts, self.inputs.tokenizer)
        if self.world.is_main:
            results = probes_folder(self.folder, self.checked, self.inputs)
            rmtree(results, ignore_errors=True)
            with recorded_folder(results) as draft:
                write_atomically(draft / RESULTS, json.dumps(found, indent=2) + "\n")
        return found

    def _load(self) -> LanguageModel:
        """Return the teacher's model, loaded on first use."""
        if self.teacher is None:
            self.progress.phase("loading the teacher")
            self.teacher = self.loader.load_teacher_model()
            self.logits = self.teacher.head.prepare_logits_fn()
        return self.teacher

    def _free(self) -> None:
        """Free the memory of the teacher."""
        self.teacher = self.logits = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def states_of(teacher: LanguageModel, documents: Sequence[Document]) -> tuple[Tensor, list[int]]:
    """Return the teacher's states [N, H] float32 at the answer tokens of documents, and how many each document has."""
    states = teacher.hidden(collate(documents).for_teacher().to(teacher.device))
    return states.float(), [document.answer_tokens for document in documents]


def probes_folder(folder: Path, checked: ResolvedRecipe, inputs: RunInputs) -> Path:
    """Return the folder with the results of the recipe's probes for the teacher, on the recipe's held-out documents."""
    named = checked.plugins.named("on_evaluate")
    probes = {f"{section}.{name}": plugin_identity(checked, section, name) for section, name in named}
    documents = [document.as_teacher().content_hash for document in inputs.corpus.held_out]
    return folder / PROBES / content_hash([probes, documents])


def stored_probes(folder: Path, checked: ResolvedRecipe, inputs: RunInputs) -> dict[str, Any]:
    """Return the stored results of the recipe's probes for the teacher; empty where there are none."""
    results = probes_folder(folder, checked, inputs)
    if not results.is_dir():
        return {}
    if found := damage(results):
        logger.warning("%s is damaged: %s; the stored results of the probes are not used", results, found)
        return {}
    return read_json(results / RESULTS, FIX)

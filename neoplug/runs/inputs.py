"""The resolved inputs of a run: models found, data tokenised, vocabularies compared, before any weight is loaded."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from neoplug.data import Corpus, check_source, load_corpus
from neoplug.data.encode.differences import TEACHER, differences, templates_of
from neoplug.data.encode.teacher_prompt import teacher_prompt
from neoplug.errors import RecipeError
from neoplug.models.prepared import prepare
from neoplug.models.reference import ResolvedModel
from neoplug.models.stored_adapter import warn_other_base
from neoplug.models.vocabulary import Vocabulary, shared
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.preflight import (
    _reads,
    dry_run_student,
    dry_run_teacher,
    find_model,
    validate_document_lengths,
    validate_shared_vocabulary,
)
from neoplug.runs.progress import Progress
from neoplug.runs.steps import training_batches

logger = logging.getLogger("neoplug")


@dataclass(frozen=True, eq=False)
class RunInputs:
    """What a run stands on before a weight is loaded.

    base          the prepared student, or the student as it came
    trains_whole  every weight of the base trains, unquantised: it is loaded in float32, so that training starts from
                  the stored weights; None: this is not known before the adapter is added
    """

    student: ResolvedModel
    base: ResolvedModel
    teacher: ResolvedModel | None
    tokenizer: Any
    corpus: Corpus
    vocabulary: Vocabulary
    trains_whole: bool | None


def resolve_inputs(checked: ResolvedRecipe, progress: Progress) -> RunInputs:
    """Find models, tokenise the data, compare vocabularies, prepare the student.

    Raises:
        RecipeError: a model or the data cannot be used.
    """
    parts, recipe = survey(checked, progress), checked.recipe
    whole = dry_run_student(checked, parts.student, parts.corpus)
    trains_whole = False if recipe.student.load else whole
    if recipe.student.prepare:
        progress.phase("preparing the student")
    batches = partial(training_batches, checked, parts.corpus)
    base = prepare(parts.student, checked, batches, parts.corpus.fingerprint)
    if base.adapter:
        warn_other_base(base.adapter, base)
    return replace(parts, base=base, trains_whole=trains_whole)


def survey(checked: ResolvedRecipe, progress: Progress) -> RunInputs:
    """Do all of this but prepare the student and try its adapter: `base` is the student as it came."""
    recipe = checked.recipe
    if problems := check_source(recipe.data):
        raise RecipeError(problems)
    progress.phase("looking for the models")
    student = find_model(recipe.student, "student")
    teacher = find_model(recipe.teacher, "teacher") if recipe.teacher else None
    tokenizer, rows = _reads(student, "student")
    theirs, their_rows = (tokenizer, rows) if teacher is None else _reads(teacher, "teacher")
    vocabulary = shared(tokenizer, theirs, rows, their_rows)
    progress.phase("reading the data")
    prompt = teacher_prompt(recipe.teacher.chat_template, theirs) if recipe.teacher else None
    corpus = load_corpus(recipe.data, tokenizer, prompt)
    for line in corpus.report.lines():
        logger.info(line)
    for line in differences(tokenizer, theirs, templates_of(recipe.data, prompt, corpus.report)):
        logger.warning("%s", TEACHER.format(line))
    validate_shared_vocabulary(corpus, vocabulary, tokenizer)
    validate_document_lengths(corpus, {"student": student, "teacher": teacher})
    if recipe.teacher and teacher:
        dry_run_teacher(checked, recipe.teacher, teacher)
    return RunInputs(student, student, teacher, tokenizer, corpus, vocabulary, trains_whole=False)

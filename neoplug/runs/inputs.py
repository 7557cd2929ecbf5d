"""The resolved inputs of a run, before any weight is loaded: models located, text tokenised, vocabularies compared.

Run, plan, preview and eval resolve them here, each up to the stage that it needs:

    models = find_models(checked)                   located, nothing loaded
    text = resolve_text(checked, models, progress)  tokenizers and data                           preview stops here
    inputs = validate_inputs(checked, text)         data and teacher fit the student              plan and eval
    inputs = prepare_student(checked, inputs, ...)  dry run on the meta device, prepared weights  run
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from neoplug.data import Corpus, check_local_sources, load_unvalidated_corpus
from neoplug.data.encode.clock import today
from neoplug.data.encode.differences import DIFFERENCE, differences, templates_of
from neoplug.data.encode.segmentation import Segmentation, compare_segmentation
from neoplug.data.encode.teacher_encoder import teacher_encoder
from neoplug.errors import Problem, RecipeError
from neoplug.hookspecs import Role
from neoplug.models.load import load_config, load_tokenizer
from neoplug.models.prepared import prepare
from neoplug.models.reference import ResolvedModel
from neoplug.models.stored_adapter import warn_other_base
from neoplug.models.vocabulary import Vocabulary, shared
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.cache_folder import stored_teacher
from neoplug.runs.preflight import (
    dry_run_student,
    dry_run_teacher,
    find_model,
    sets_stored_form,
    validate_document_lengths,
)
from neoplug.runs.progress import Progress
from neoplug.runs.steps import training_batches
from neoplug.runs.token_checks import validate_rows_of_tokens, validate_segmentation, validate_shared_vocabulary

if TYPE_CHECKING:
    from neoplug.runs.cache_folder import TeacherCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TextInputs:
    """The tokenizers and the data of a run.

    tokenizer          of the student, with the chat template that renders the conversations of the data
    teacher            None where the recipe has no teacher, or the student is its own
    teacher_tokenizer  the same one where `teacher` is None
    differences        a line for each difference of the teacher's tokenizer, chat template and tokens of the text
    segmentation       how the teacher's tokenizer splits the text; None where `teacher` is None
    problems           problems of the data, for which a run is refused
    """

    student: ResolvedModel
    teacher: ResolvedModel | None
    tokenizer: Any
    teacher_tokenizer: Any
    corpus: Corpus
    differences: list[str]
    segmentation: Segmentation | None
    problems: list[Problem]


@dataclass(frozen=True, eq=False)
class RunInputs(TextInputs):
    """The resolved inputs of a run.

    base          the prepared student, or the unmodified one where the recipe does not prepare it
    trains_whole  whether every weight of the base is trained: it is then loaded in float32, so that training starts
                  from the stored weights; False if none is, and for a quantised student; None: some are, or copies of
                  some, or this is unknown until the adapter is added
    cache         what is stored of the teacher's output; None where the teacher is a model in memory
    """

    vocabulary: Vocabulary
    base: ResolvedModel
    trains_whole: bool | None
    cache: "TeacherCache | None" = None

    @property
    def has_entries(self) -> bool:
        """Whether losses read entries of the teacher's distributions, and no logits."""
        return self.cache is not None and self.cache.has_entries


def resolve_inputs(checked: ResolvedRecipe, progress: Progress, day: str | None = None) -> RunInputs:
    """Locate the models, tokenise the data and compare the vocabularies; log the report of the data.

    day  the date that chat templates read where the recipe does not say; None: today

    Raises:
        RecipeError: a model or the data cannot be used.
    """
    progress.phase("locating the models")
    text = resolve_text(checked, find_models(checked), progress, day)
    if not text.problems:
        _log_data(text)
    return validate_inputs(checked, text)


def find_models(checked: ResolvedRecipe) -> dict[Role, ResolvedModel]:
    """Return the resolved student and teacher with their adapters; refuse local data that cannot be read.

    A teacher whose cache was built elsewhere has no weights.

    Raises:
        RecipeError: one of these is not found.
    """
    recipe, consent = checked.recipe, checked.consent
    if problems := check_local_sources(recipe.data, checked.plugins):
        raise RecipeError(problems)
    models: dict[Role, ResolvedModel] = {"student": find_model(recipe.student, "student", consent)}
    if recipe.teacher and not recipe.teacher.itself:
        models["teacher"] = stored_teacher(checked) or find_model(recipe.teacher, "teacher", consent)
    return models


def resolve_text(
    checked: ResolvedRecipe, models: Mapping[Role, ResolvedModel], progress: Progress, day: str | None = None
) -> TextInputs:
    """Load the tokenizers, read and tokenise the data.

    day  the date that chat templates read where the recipe does not say; None: today

    Raises:
        RecipeError: a model has no tokenizer, or the data cannot be read.
    """
    recipe, student, teacher = checked.recipe, models["student"], models.get("teacher")
    tokenizer = load_tokenizer(student, ("student", "model"))
    theirs = load_tokenizer(teacher, ("teacher", "model")) if teacher else tokenizer
    progress.phase("reading the data")
    data = recipe.data.model_copy(update={"chat_template_date": recipe.data.chat_template_date or day or today()})
    encoder = teacher_encoder(recipe.teacher.chat_template, theirs, data.chat_template_date) if recipe.teacher else None
    corpus = load_unvalidated_corpus(data, tokenizer, encoder, checked.plugins)
    templates = templates_of(data, tokenizer, encoder, corpus.report)
    if templates and templates.student:
        tokenizer.chat_template = templates.student
    segmentation = compare_segmentation(corpus.rows, tokenizer, theirs, recipe.seed) if teacher else None
    splits = segmentation.describe(corpus.report.row_label) if segmentation else ""
    return TextInputs(
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        teacher_tokenizer=theirs,
        corpus=corpus,
        differences=[*differences(tokenizer, theirs, templates), *([f"its tokenizer {splits}"] if splits else [])],
        segmentation=segmentation,
        problems=corpus.report.problems(recipe.data.max_dropped_rows, has_prompts=encoder is not None),
    )


def validate_inputs(checked: ResolvedRecipe, text: TextInputs) -> RunInputs:
    """Refuse data or a teacher that do not fit the student; return the inputs with the unmodified student as base.

    Raises:
        RecipeError: the data have problems, tokens that a model has no row for, or documents that are too long;
            the teacher's tokenizer splits too many documents into other tokens; or the teacher cannot be loaded with
            its section of the recipe.
    """
    if text.problems:
        raise RecipeError(text.problems)
    rows = _vocabulary_size(text.student, "student")
    their_rows = _vocabulary_size(text.teacher, "teacher") if text.teacher else rows
    vocabulary = shared(text.tokenizer, text.teacher_tokenizer, rows, their_rows)
    own = {"student": text.tokenizer, "teacher": text.teacher_tokenizer}
    validate_rows_of_tokens(text.corpus, {"student": rows, "teacher": their_rows}, own)
    validate_shared_vocabulary(text.corpus, vocabulary, text.tokenizer)
    if checked.recipe.teacher and text.segmentation:
        validate_segmentation(text.corpus, text.segmentation, checked.recipe.teacher.max_segmentation_difference)
    reading = text.student if checked.recipe.taught_by else text.teacher
    validate_document_lengths(text.corpus, {"student": text.student, "teacher": reading})
    if checked.recipe.teacher and text.teacher and not checked.plugins.implements("cache_folder"):
        dry_run_teacher(checked, checked.recipe.teacher, text.teacher)
    return RunInputs(**vars(text), vocabulary=vocabulary, base=text.student, trains_whole=False)


def prepare_student(checked: ResolvedRecipe, inputs: RunInputs, progress: Progress) -> RunInputs:
    """Dry-run the student with its adapter on the meta device; then run the recipe's `prepare` plugins, if any.

    Raises:
        RecipeError: the recipe does not fit the student.
        PluginError: a plugin failed.
    """
    section = checked.recipe.student
    whole = dry_run_student(checked, inputs.student, inputs.corpus)
    if section.prepare:
        progress.phase("preparing the student")
    batches = partial(training_batches, checked, inputs.corpus)
    base = prepare(inputs.student, checked, batches, inputs.corpus.fingerprint)
    if base.adapter:
        warn_other_base(base.adapter, base)
    return replace(inputs, base=base, trains_whole=False if sets_stored_form(checked) else whole)


def _log_data(text: TextInputs) -> None:
    for line in text.corpus.report.lines():
        logger.info(line)
    for line in text.differences:
        logger.warning("%s", DIFFERENCE.format(line))


def _vocabulary_size(model: ResolvedModel, role: Role) -> int:
    """Return the vocabulary size in a model's configuration: the number of rows of its head."""
    return int(load_config(model, (role, "model")).get_text_config().vocab_size)

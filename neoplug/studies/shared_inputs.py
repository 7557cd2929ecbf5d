"""Inputs that many runs of a study share, built once before the first: tokens, prepared students, teachers' caches."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neoplug.errors import Problem, RecipeError
from neoplug.files import content_hash
from neoplug.recipe import ResolvedRecipe
from neoplug.studies.directory import StudyDir
from neoplug.studies.halves import validate_halves

SECTIONS = ("student", "teacher", "data")


def distinct(recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield one of the given jobs for each distinct student, teacher and data of their recipes."""
    seen = set()
    for job, recipe in recipes.items():
        key = content_hash({section: recipe.get(section) for section in SECTIONS})
        if key not in seen:
            seen.add(key)
            yield job


def build(directory: StudyDir, job: str) -> None:
    """Tokenise the data of a job, prepare its student, store its teacher's output; all stay in the cache."""
    from neoplug.distributed.world import World
    from neoplug.runs.inputs import prepare_student, resolve_inputs
    from neoplug.runs.process import isolated
    from neoplug.runs.progress import Silent
    from neoplug.runs.teacher_build import with_cache

    checked = directory.recipe(job)
    with isolated():
        inputs = prepare_student(checked, resolve_inputs(checked, Silent()), Silent())
        with_cache(checked, inputs, World(checked.recipe.student.device), Silent())


def validate(checked: ResolvedRecipe) -> None:
    """Refuse held-out documents of which one half is empty, and text with the date of the day on which a run starts.

    Other mistakes are left to the runs. Raises RecipeError.
    """
    from neoplug.runs.inputs import find_models, resolve_text
    from neoplug.runs.progress import Silent

    try:
        text = resolve_text(checked, find_models(checked), Silent())
    except RecipeError:
        return
    if text.problems:
        return
    with checked.marking():
        if text.corpus.day and not checked.recipe.data.chat_template_date:
            raise RecipeError([_undated(text.corpus.day)])
        validate_halves(document.content_hash for document in text.corpus.held_out)


def _undated(day: str) -> Problem:
    return Problem(
        "the chat template reads the date, so the text depends on the day on which a run starts",
        "the runs of a study train on the same text, on whatever day they start",
        f"set it: data.chat_template_date={day}",
        ("data", "chat_template_date"),
    )


def main() -> None:
    """Build the inputs of jobs of the study in the folder that the first argument names; see `executors.local`."""
    from neoplug.studies.executors.local import serve

    directory = StudyDir(Path(sys.argv[1]))
    serve(lambda job: build(directory, job))


if __name__ == "__main__":
    main()

"""What is checked of the inputs of a study before its first run."""

import pytest

from neoplug.errors import RecipeError
from neoplug.studies.shared_inputs import validate

DATED = (
    "{{ strftime_now('%Y-%m-%d') }}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_reads_the_date_needs_one(study_lab):
    """Runs that start on other days would train on other text, under the same ids."""
    (study_lab.folder / "dated.jinja").write_text(DATED, encoding="utf-8")
    template = f"data.chat_template={study_lab.folder / 'dated.jinja'}"
    study = study_lab.study(template)
    with pytest.raises(RecipeError, match=r"reads the date(?s:.)*fix: set it: data\.chat_template_date=\d"):
        validate(study.resolve(study.arms[0], {}, 0))
    dated = study_lab.study(template, "data.chat_template_date=2026-01-31")
    validate(dated.resolve(dated.arms[0], {}, 0))

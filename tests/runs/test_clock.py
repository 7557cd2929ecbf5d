"""A chat template that reads the clock, in complete runs: a run that is resumed on another day is the same run."""

import shutil
from datetime import date

import pytest
import yaml

import neoplug
from neoplug.runs import preview

DATED = (
    "{{ strftime_now('%Y-%m-%d') }}\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def set_today(monkeypatch, day):
    for module in ("neoplug.data.dataset", "neoplug.runs.inputs", "neoplug.runs.execute"):
        monkeypatch.setattr(f"{module}.today", lambda: day)


@pytest.mark.slow
def test_a_run_that_is_resumed_on_another_day_is_the_same(lab, monkeypatch):
    set_today(monkeypatch, "2024-02-29")
    whole = lab.run("run", data={"chat_template": DATED}, teacher={"chat_template": "own"}, train={"max_steps": 4})
    assert whole.lock["data"]["chat_template_date"] == "2024-02-29"
    facts, adapter = whole.facts, whole.adapter_bytes
    (whole.path / "result.json").unlink()
    shutil.rmtree(whole.path / "checkpoints" / "step-4")
    set_today(monkeypatch, "2024-03-01")
    again = lab.run("run", lab.folder / "run-recipe.yaml", resume=True)
    assert (again.facts, again.adapter_bytes) == (facts, adapter)
    other = lab.run("other", lab.folder / "run-recipe.yaml")
    assert other.lock["data"]["chat_template_date"] == "2024-03-01"
    assert other.lock["data"]["fingerprint"] != whole.lock["data"]["fingerprint"]


def test_a_recipe_may_fix_the_date_and_preview_shows_it(lab):
    file = lab.recipe(data={"chat_template": DATED, "chat_template_date": "2020-05-17"})
    shown = preview.preview(neoplug.recipe.load(file), rows=1)
    assert shown.rows[0].documents[0].student[0][0].startswith("2020-05-17\n<|im_start|>user")
    unquoted = yaml.safe_load(file.read_text())
    unquoted["data"]["chat_template_date"] = date(2020, 5, 17)
    file.write_text(yaml.safe_dump(unquoted))  # YAML dates are written without quotes
    assert neoplug.recipe.load(file).recipe.data.chat_template_date == "2020-05-17"

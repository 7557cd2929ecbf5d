"""A teacher whose tokenizer has the student's ids and other merges: told, and refused above the recipe's share."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

import neoplug
from neoplug import recipe as recipes
from neoplug.errors import RecipeError
from neoplug.runs import model_loader
from neoplug.runs.plan import plan

ROWS = 40
LINE = "the teacher differs from the student: its tokenizer splits"


@pytest.fixture
def merged(lab, tiny_teacher, tmp_path):
    """Return the folder of a teacher whose tokenizer lacks one merge: that of " t" and "he", or " th" and "e"."""
    folder = shutil.copytree(tiny_teacher, tmp_path / "other-merges")
    whole = json.loads((folder / "tokenizer.json").read_text())
    kept = [merge for merge in whole["model"]["merges"] if "".join(merge) != "Ġthe"]
    assert len(kept) + 1 == len(whole["model"]["merges"])
    (folder / "tokenizer.json").write_text(json.dumps(whole | {"model": whole["model"] | {"merges": kept}}))
    return folder


def recipe(lab, merged, with_the, **teacher):
    texts = [f"row {number}{' is the one' if number < with_the else ''}" for number in range(ROWS)]
    (lab.folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    held_out = lab.folder / "held-out.jsonl"
    held_out.write_text('{"text": "held out"}\n')
    data = {"source": str(lab.folder / "texts.jsonl"), "held_out": None, "eval_source": str(held_out)}
    teacher = {"model": str(merged), **teacher}
    return lab.recipe(teacher=teacher, data=data, train={"max_steps": 1}), texts


def test_more_than_the_share_is_refused_before_a_model_is_loaded(lab, merged, monkeypatch):
    monkeypatch.setattr(model_loader, "load_model", None)
    file, texts = recipe(lab, merged, with_the=4)
    student, teacher = (AutoTokenizer.from_pretrained(folder) for folder in (lab.base["student"]["model"], merged))
    assert sum(student(text)["input_ids"] != teacher(text)["input_ids"] for text in texts) == 4
    assert student.get_vocab() == teacher.get_vocab()
    with pytest.raises(RecipeError) as caught:
        neoplug.run(file, output=lab.folder / "run")
    (problem,) = caught.value.problems
    assert problem.what.startswith(
        "the teacher's tokenizer splits 4 of 40 documents (10.00%) into other tokens, such as"
    )
    assert "the student's 'Ġthe'" in problem.what
    assert "`max_segmentation_difference` allows 1.00%" in problem.why
    assert "`teacher.max_segmentation_difference`" in problem.fix
    assert problem.mark.line == 2
    with pytest.raises(RecipeError, match="4 of 40 documents"):
        plan(recipes.load(file), quick=True)


@pytest.mark.parametrize(("with_the", "allowed"), [(4, 0.1), (1, 0.025), (ROWS, 1)])
def test_up_to_the_share_it_is_told_by_plan_and_run(lab, merged, with_the, allowed, caplog):
    file, _ = recipe(lab, merged, with_the, max_segmentation_difference=allowed)
    (line,) = [line for line in plan(recipes.load(file), quick=True)["warnings"] if line.startswith(LINE)]
    assert f"splits {with_the} of 40 documents" in line
    neoplug.run(file, output=lab.folder / "run")
    assert line in (lab.folder / "run" / "log.txt").read_text(encoding="utf-8")


def test_equal_segmentation_is_not_mentioned(lab, merged):
    file, _ = recipe(lab, merged, with_the=0, max_segmentation_difference=0)
    assert not [line for line in plan(recipes.load(file), quick=True)["warnings"] if line.startswith(LINE)]

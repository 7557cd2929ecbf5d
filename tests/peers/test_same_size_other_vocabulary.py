"""TRL compares the sizes of two vocabularies, not their tokens: it trains on mismatched ids without a warning."""

import json
import shutil

import pytest

from neoplug.errors import RecipeError


def test_two_vocabularies_of_one_size_with_different_tokens_are_refused(run, tmp_path, tiny_teacher):
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    file = teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    file.write_text(json.dumps(content))

    with pytest.raises(RecipeError, match="do not share a vocabulary") as caught:
        run(teacher={"model": str(teacher)}, loss={"forward_kl": {}})
    assert f"'A' is {ids['B']} in the student, {ids['A']} in the teacher" in str(caught.value)
    assert f"'B' is {ids['A']} in the student, {ids['B']} in the teacher" in str(caught.value)
    assert not (tmp_path / "run").exists()

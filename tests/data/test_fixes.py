"""The fix of an error about dropped rows follows from the reasons for which they are dropped."""

import json

import pytest

from neoplug.data import load_corpus
from neoplug.errors import RecipeError


def talk(*messages):
    return json.dumps({"messages": list(messages)})


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ('{"messages": ', "one JSON object per line"),
        ("[1]", "as an object of columns"),
        (talk({"role": "user", "content": "a"}), "data.train_on: all"),
        (talk({"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}), "no images"),
        (talk({"role": "user", "content": "a"}, {"role": "assistant", "content": ""}), "give each answer a content"),
        ('{"messages": "hello"}', "a list in JSON"),
        ('{"prompt": "a", "completion": ""}', "fill the column"),
        ('{"prompt": "a", "completion": 7}', "map a column of text"),
        (
            talk({"role": "user", "content": "a " * 200}, {"role": "assistant", "content": "b"}),
            "larger data.max_length",
        ),
    ],
)
def test_the_fix_follows_from_the_reason(tmp_path, section, tiny_tokenizer, line, fix):
    good = [talk({"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}) for n in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, line, line]) + "\n")
    with pytest.raises(RecipeError) as caught:
        load_corpus(section(tmp_path / "a.jsonl", held_out=4, max_length=100), tiny_tokenizer)
    (problem,) = caught.value.problems
    assert fix in problem.fix
    assert "max_length" not in problem.fix or "max_length" in fix

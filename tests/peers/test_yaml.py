"""PyYAML keeps the last of two equal keys without a warning and reads 1e-4 as text, as do tools built on it."""

import pytest
import yaml

from neoplug import recipe
from neoplug.errors import RecipeError

RECIPE = """\
student: {{model: some/model}}
data: {{source: some/data}}
adapter: {{lora: {{}}}}
loss: {{cross_entropy: {{}}}}
train: {{max_steps: 5, learning_rate: {rate}}}
{more}
"""


def load(path, rate="1e-4", more=""):
    (path / "mine.yaml").write_text(RECIPE.format(rate=rate, more=more))
    return recipe.load(path / "mine.yaml").recipe


@pytest.mark.parametrize(
    ("written", "number"), [("1e-4", 1e-4), ("5E-5", 5e-5), ("2e-4", 2e-4), (".001", 1e-3), ("1.5e-3", 1.5e-3)]
)
def test_a_number_in_scientific_notation_is_a_number(tmp_path, written, number):
    assert load(tmp_path, written).train.learning_rate == number


def test_pyyaml_reads_text():
    assert yaml.safe_load("1e-4") == "1e-4"


def test_quoted_text_is_not_read_as_a_number(tmp_path):
    with pytest.raises(RecipeError, match="learning_rate"):
        load(tmp_path, '"1e-4"')


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("seed: 1\nseed: 2", "seed"),
        ("train: {max_steps: 9}", "train"),
        ("evaluate: {eval_steps: 1, eval_steps: 2}", "eval_steps"),
    ],
)
def test_a_duplicate_key_is_refused(tmp_path, more, key):
    assert yaml.safe_load(f"{key}: 1\n{key}: 2") == {key: 2}
    with pytest.raises(RecipeError, match=f"(twice|duplicate|again).*`{key}`|`{key}`.*(twice|duplicate|again)"):
        load(tmp_path, more=more)

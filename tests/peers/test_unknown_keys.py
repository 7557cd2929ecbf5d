"""DistillKit, peft and axolotl ignore unknown keys: a misspelt option silently has its default."""

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError

RECIPE = """\
student: {model: some/model}
teacher: {model: some/teacher}
data: {source: some/data}
adapter: {lora: {r: 8}}
loss: {forward_kl: {temperature: 2.0}}
train: {max_steps: 5}
"""


@pytest.mark.parametrize(
    ("right", "wrong", "parts"),
    [
        ("train:", "trian:", ["`trian`", "`train`"]),
        ("max_steps", "max_step", ["`max_step`", "`max_steps`"]),
        ("r: 8", "rank: 8", ["`rank`"]),
        ("r: 8", "r: 8, lora_alhpa: 16", ["`lora_alhpa`", "`lora_alpha`"]),
        ("temperature", "temprature", ["`temprature`", "`temperature`"]),
        ("source: some/data", "source: some/data, max_lenght: 9", ["`max_lenght`", "`max_length`"]),
        ("forward_kl", "foward_kl", ["`foward_kl`", "`forward_kl`"]),
        ("max_steps: 5", "max_steps: 5, load_in_4bit: true", ["`load_in_4bit`"]),
    ],
)
def test_an_unknown_key_is_refused_in_every_section(tmp_path, right, wrong, parts):
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    recipe.load(file)
    file.write_text(RECIPE.replace(right, wrong, 1))
    with pytest.raises(RecipeError) as caught:
        recipe.load(file)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("override", ["train.max_step=3", "adapter.lora.rr=3", "trian.max_steps=3"])
def test_an_override_is_as_strict_as_the_file(tmp_path, override):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=override.split("=")[0].split(".")[-1 if "trian" not in override else 0]):
        recipe.load(tmp_path / "mine.yaml", [override])

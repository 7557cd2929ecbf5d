"""Changed recipes and overrides are valid, or refused with a place in a text; nothing else happens."""

import random
import re
from pathlib import Path

import pytest
import yaml

from neoplug import recipe
from neoplug.errors import RecipeError
from neoplug.recipe.source import shipped

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from mutations import mutant, overrides
    from variations import overriding_variation, styled, variation

TEXTS = {name: file.read_text(encoding="utf-8") for name, file in shipped().items() if "/" not in name}


def is_valid_or_refused_with_its_place(source, changes=()):
    """Return whether it is valid."""
    try:
        return bool(recipe.load(source, changes).resolved())
    except RecipeError as error:
        message = str(error)
        assert re.match(r"[^\n]+:\d+:\d+: ", message), message[:500]
        assert len(message) < 60_000
        assert "pass@" not in message
        return False


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("part", range(5))
def test_a_mutated_recipe(tmp_path, name, part):
    for seed in range(part * 30, (part + 1) * 30):
        (tmp_path / "r.yaml").write_text(mutant(TEXTS[name], seed), encoding="utf-8", errors="surrogatepass")
        is_valid_or_refused_with_its_place(tmp_path / "r.yaml")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("part", range(3))
def test_mutated_overrides(name, part):
    for seed in range(part * 30, (part + 1) * 30):
        is_valid_or_refused_with_its_place(name, [*overrides(TEXTS[name], seed)])


COMPLETE = TEXTS["base"] + "teacher: {model: hub/teacher}\nstudent: {model: hub/student}\n"
COMPLETE = COMPLETE.replace("data:\n", "data:\n  source: hub/rows\n")


def test_most_variations_are_valid(tmp_path):
    valid = []
    for seed in range(40):
        (tmp_path / "r.yaml").write_text(variation(COMPLETE, seed), encoding="utf-8", newline="")
        valid.append(is_valid_or_refused_with_its_place(tmp_path / "r.yaml"))
        (tmp_path / "r.yaml").write_text(COMPLETE, encoding="utf-8")
        valid.append(is_valid_or_refused_with_its_place(tmp_path / "r.yaml", [*overriding_variation(COMPLETE, seed)]))
    assert 50 < sum(valid) < 80


def test_the_style_of_the_yaml_changes_no_value(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(COMPLETE, encoding="utf-8")
    expected = recipe.load(file).resolved()
    written = {styled(yaml.safe_load(COMPLETE), random.Random(seed)) for seed in range(40)}
    assert len(written) == 40
    for text in written:
        file.write_text(text, encoding="utf-8", newline="")
        assert recipe.load(file).resolved() == expected

"""Mutated recipes and overrides are valid, or refused with a place in a text; nothing else happens."""

import re
from pathlib import Path

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError
from neoplug.recipe.source import shipped

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from mutations import mutant, overrides

TEXTS = {name: file.read_text(encoding="utf-8") for name, file in shipped().items()}


def is_valid_or_refused_with_its_place(source, changes=()):
    try:
        assert recipe.load(source, changes).resolved()
    except RecipeError as error:
        message = str(error)
        assert re.match(r"[^\n]+:\d+:\d+: ", message), message[:500]
        assert len(message) < 60_000
        assert "pass@" not in message


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

"""axolotl logs a plugin's ImportError and goes on without the plugin: the run is then another than was asked for."""

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError

RECIPE = """\
student: {{model: some/model}}
data: {{source: some/data}}
adapter: {{lora: {{}}}}
loss: {{cross_entropy: {{}}}}
train: {{max_steps: 5}}
{more}
"""
NEEDY = "import a_library_that_nobody_has\n\nclass Needy:\n    pass\n"


def load(path, more):
    (path / "mine.yaml").write_text(RECIPE.format(more=more))
    return recipe.load(path / "mine.yaml")


def test_a_named_file_that_does_not_import_is_an_error(tmp_path):
    (tmp_path / "needy.py").write_text(NEEDY)
    with pytest.raises(RecipeError, match="a_library_that_nobody_has") as caught:
        load(tmp_path, "treatments: {'./needy.py:Needy': {}}")
    assert caught.value.exit_code == 2
    assert "mine.yaml:6:" in str(caught.value)


@pytest.fixture
def neighbour(tmp_path, monkeypatch):
    """Install a package whose plugin does not import."""
    site = tmp_path / "site"
    info = site / "neighbour-3.1.dist-info"
    info.mkdir(parents=True)
    (site / "neighbour.py").write_text(NEEDY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbour\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[neoplug]\nneedy = neighbour:Needy\n")
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("neighbour")
def test_a_named_package_that_does_not_import_is_an_error_with_its_version(tmp_path):
    with pytest.raises(RecipeError, match="a_library_that_nobody_has") as caught:
        load(tmp_path, "treatments: {needy: {}}")
    assert "neighbour" in str(caught.value)
    assert "3.1" in str(caught.value)


@pytest.mark.usefixtures("neighbour")
def test_one_that_no_recipe_names_hurts_nobody(tmp_path):
    assert load(tmp_path, "").recipe.train.max_steps == 5

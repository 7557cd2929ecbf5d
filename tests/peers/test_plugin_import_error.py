"""axolotl logs a plugin's ImportError and continues without the plugin, so the run is not the requested one."""

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
PLUGIN = "import a_library_that_does_not_exist\n\nclass Plugin:\n    pass\n"


def load(path, more):
    (path / "mine.yaml").write_text(RECIPE.format(more=more))
    return recipe.load(path / "mine.yaml")


def test_a_named_file_that_does_not_import_is_an_error(tmp_path):
    (tmp_path / "unimportable.py").write_text(PLUGIN)
    with pytest.raises(RecipeError, match="a_library_that_does_not_exist") as caught:
        load(tmp_path, "treatments: {'./unimportable.py:Plugin': {}}")
    assert caught.value.exit_code == 2
    assert "mine.yaml:6:" in str(caught.value)


@pytest.fixture
def example_plugins(tmp_path, monkeypatch):
    """Install a package whose plugin does not import."""
    site = tmp_path / "site"
    info = site / "example_plugins-3.1.dist-info"
    info.mkdir(parents=True)
    (site / "example_plugins.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example_plugins\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[neoplug]\nunimportable = example_plugins:Plugin\n")
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("example_plugins")
def test_a_named_package_that_does_not_import_is_an_error_with_its_version(tmp_path):
    with pytest.raises(RecipeError, match="a_library_that_does_not_exist") as caught:
        load(tmp_path, "treatments: {unimportable: {}}")
    assert "example_plugins" in str(caught.value)
    assert "3.1" in str(caught.value)


@pytest.mark.usefixtures("example_plugins")
def test_a_plugin_that_the_recipe_does_not_name_is_not_imported(tmp_path):
    assert load(tmp_path, "").recipe.train.max_steps == 5

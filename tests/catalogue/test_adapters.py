"""Every property of adapters holds for every installed one; exceptions are declared by its class in `traits`.

A declared exception that is not true fails, too. A plugin without exceptions must pass every test.
"""

import re
from pathlib import Path

import pytest

from neoplug.errors import RecipeError
from neoplug.registry import build, installed
from neoplug.testing import NotApplicable, adapter_kit


@pytest.fixture(scope="session")
def properties(packaged):
    """Return the properties by name; best rates on the packaged model differ by 100 times between adapters."""
    return (adapter_kit(packaged, (1e-2, 1e-3, 1e-1)) if packaged else adapter_kit()).properties


@pytest.mark.slow
@pytest.mark.parametrize("name", adapter_kit().properties)
def test_a_property_of_adapters(properties, name, adapter):
    try:
        properties[name](adapter)
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_unknown_options_are_refused(adapter):
    with pytest.raises(RecipeError, match="no_such_option"):
        build(type(adapter), {"no_such_option": 1})


def test_the_page_has_a_row_for_each_adapter_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")
    table = page.partition("\n| name |")[2].partition("\n\n")[0]
    own = {entry.name for entry in installed() if entry.target.startswith("neoplug_adapters.")} - {"loraplus"}
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(own)

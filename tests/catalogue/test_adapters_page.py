"""docs/reference/adapters.md shows the measurements of every installed adapter, and no others."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    """Return the module of the script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import adapters_page
    return adapters_page


def test_the_cost_of_every_adapter_was_measured(maker):
    command = "python benchmarks/adapters.py"
    unmeasured = [f"{command} --only {name}" for name in maker.adapters() if name not in maker.rows()]
    assert not unmeasured, "run these on an idle machine, and then python benchmarks/adapters_page.py"
    assert sorted(maker.rows()) == list(maker.adapters()), f"rows of adapters that are gone: run {command}"
    assert json.loads(maker.FILE.read_text(encoding="utf-8"))["command"] in TEXT


def test_every_adapter_was_tested_on_the_packaged_model(maker):
    command = "pytest -n 0 tests/catalogue/test_adapters.py --packaged benchmarks/adapters_packaged.json"
    untested = [f"{command} -k {name}" for name in maker.adapters() if name not in maker.outcomes()]
    assert not untested, "run these, and then python benchmarks/adapters_page.py"
    assert sorted(maker.outcomes()) == list(maker.adapters())
    assert command in TEXT


def test_no_test_fails_on_the_packaged_model(maker):
    failed = {name: maker.passed(tests) for name, tests in maker.outcomes().items() if "failed" in tests.values()}
    assert not failed


def test_the_page_shows_the_measurements(maker):
    assert maker.page(TEXT) == TEXT, "run python benchmarks/adapters_page.py"


def test_each_slow_adapter_has_a_reason(maker):
    assert [name for name in maker.slow(maker.rows()) if name not in maker.WHY] == []


def test_lora_has_the_cost_of_the_lora_reference(maker):
    plain = maker.rows()["lora"]
    assert plain["ratio"]["median"] == pytest.approx(1, abs=0.25)
    assert plain["peak_bytes"] == pytest.approx(plain["lora_peak_bytes"], rel=0.1)
    assert plain["disk_bytes"] > 4 * plain["parameters"]

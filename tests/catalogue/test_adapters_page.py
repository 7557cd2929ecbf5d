"""docs/reference/adapters.md shows what was measured of every installed adapter, and nothing else."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    """Return the script that makes the page."""
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


def test_every_adapter_was_held_to_the_suite_on_the_packaged_model(maker):
    command = "pytest -n 0 tests/catalogue/test_adapters.py --packaged benchmarks/adapters_packaged.json"
    untried = [f"{command} -k {name}" for name in maker.adapters() if name not in maker.outcomes()]
    assert not untried, "run these, and then python benchmarks/adapters_page.py"
    assert sorted(maker.outcomes()) == list(maker.adapters())
    assert command in TEXT


def test_nothing_fails_on_the_packaged_model(maker):
    failed = {name: maker.passed(tests) for name, tests in maker.outcomes().items() if "failed" in tests.values()}
    assert not failed


def test_the_page_shows_what_was_measured(maker):
    assert maker.page(TEXT) == TEXT, "run python benchmarks/adapters_page.py"


def test_it_is_said_of_each_slow_one_why(maker):
    assert [name for name in maker.slow(maker.rows()) if name not in maker.WHY] == []


def test_lora_costs_as_much_as_lora(maker):
    plain = maker.rows()["lora"]
    assert plain["ratio"]["median"] == pytest.approx(1, abs=0.25)
    assert plain["peak_bytes"] == pytest.approx(plain["lora_peak_bytes"], rel=0.1)
    assert plain["disk_bytes"] > 4 * plain["parameters"]

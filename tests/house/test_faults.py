"""The page on attacks and damage shows what benchmarks/faults.json has, and no promise was broken."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker():
    """Return the module of the script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import faults_page
    return faults_page


def test_the_page_shows_the_measurements(maker):
    assert maker.figures(maker.stored()) in maker.PAGE.read_text(encoding="utf-8")


def test_every_part_is_measured_and_no_promise_was_broken(maker):
    assert maker.stored().keys() == maker.PARTS.keys()
    assert not [failure for row in maker.stored().values() for failure in row["failures"]]

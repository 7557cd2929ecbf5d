"""The documents outside the site link to files that exist; the site checks its own links when it is built."""

import re

import pytest

from .documents import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_every_relative_link_leads_to_a_file(name):
    targets = [link for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in targets if not (ROOT / link.partition("#")[0]).is_file()] == []


def test_the_readme_has_at_most_150_lines():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150

"""docs/losses.md has a row for each installed loss, says what its file says, and shows what its gradient does."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    """Return the script that makes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import losses_page
    return losses_page


@pytest.fixture(scope="module")
def measured(maker):
    return json.loads(maker.FILE.read_text(encoding="utf-8"))


def rows():
    """Yield (name, cells) of the table of losses; a cell's own bars are escaped."""
    table = TEXT.partition("<!-- shelf -->\n")[2].partition("<!-- end of shelf -->")[0]
    for line in table.strip().splitlines()[2:]:
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        yield re.match(r"\*\*`(\w+)`\*\*", cells[0])[1], cells


def lands(cells):
    """Return what a row says in numbers: (mean, width) twice, and the share that is lifted where the student misses."""
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cells[3])]
    return [tuple(numbers[0:2]), tuple(numbers[2:4])], numbers[4] / 100


def test_every_loss_has_one_row_and_one_picture(maker):
    names = list(maker.losses())
    assert [name for name, _ in rows()] == names
    assert sorted(maker.WHEN) == names
    assert sorted(file.stem for file in maker.PICTURES.glob("*")) == names


def test_a_row_says_the_options_formula_and_source_of_the_file(maker):
    for name, cells in rows():
        plugin = maker.losses()[name]
        assert cells[0] == f"**`{name}`**<br>{maker.options(plugin)}"
        assert cells[1] == maker.formula(plugin)
        assert cells[5:] == [maker.WHEN[name], maker.source(plugin)]
        assert cells[6] != "-"


def test_the_costs_are_those_that_were_measured(maker, measured):
    inner = "\n".join([*maker.summary(measured), "", maker.costs(measured)])
    assert maker.between(TEXT, "costs", inner) == TEXT
    assert {name: cells[4] for name, cells in rows()} == {name: maker.cost(name, measured) for name in maker.losses()}


def test_a_picture_says_what_its_row_says(maker):
    for name, cells in rows():
        drawn = (maker.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
        behaviour, where = re.search(r"<title>\w+: (\w+); lands at (.*)</title>", drawn).groups()
        assert cells[3].startswith(f"**{behaviour}** {where};")


def test_every_loss_lifts_what_its_row_says(maker):
    for name, cells in rows():
        lift = maker.pull_of(maker.losses()[name]).clamp(min=0)
        assert lift[maker.MISSED].sum() / lift.sum() == pytest.approx(lands(cells)[1], abs=0.011), name


def test_forward_kl_lands_on_the_teachers_moments(maker):
    """The bell is an exponential family: what covers has the teacher's mean and variance."""
    (landed, *_), _ = lands(dict(rows())["forward_kl"])
    q = maker.gaussian(*maker.student_of([maker.fit(maker.losses()["forward_kl"]).landed[0]])).detach().exp()[0]
    p = maker.teacher().exp()
    for power in (maker.GRID, maker.GRID**2):
        torch.testing.assert_close(q @ power, p @ power, atol=0.01, rtol=0.01)
    assert landed == pytest.approx((-0.5, 2.3))


@pytest.mark.slow
def test_jsd_is_as_weak_as_the_page_says(maker):
    assert maker.between(TEXT, "strength", maker.strength()) == TEXT
    found = maker.far_and_wide()
    low, middle, high = (norm for name, (_, norm) in found.items() if name.startswith("jsd"))
    assert max(low, high) < middle / 2 < found["forward_kl"][1] / 4


@pytest.mark.slow
def test_every_loss_lands_where_its_row_says(maker):
    for name, cells in rows():
        found = maker.fit(maker.losses()[name])
        for here, there in zip(found.landed, lands(cells)[0], strict=True):
            assert here == pytest.approx(there, abs=0.15), name
        assert cells[3].startswith(f"**{found.behaviour}**"), name

"""docs/reference/losses.md: a row and a section for each installed loss, with the formula and behaviour of its code."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "losses.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    """Return the module of the script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import losses_page
    return losses_page


@pytest.fixture(scope="module")
def measured(maker):
    return json.loads(maker.FILE.read_text(encoding="utf-8"))


def catalogue():
    return TEXT.partition("<!-- catalogue -->\n")[2].partition("<!-- end of catalogue -->")[0]


def rows():
    """Yield (name, cells) of the overview table; the cells after the name: behaviour, final, raised, cost."""
    for line in catalogue().partition("\n### ")[0].strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        yield re.fullmatch(r"\[`(\w+)`\]\(#\1\)", cells[0])[1], cells[1:]


def sections():
    """Yield (name, text) of the section of each loss."""
    for part in catalogue().split("\n### ")[1:]:
        name, _, text = part.partition("\n")
        yield name, text.strip()


def minimum(cells):
    """Return a row's numbers: (mean, width) twice, and the share raised on the missed mode."""
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", f"{cells[1]}; {cells[2]}")]
    return [tuple(numbers[0:2]), tuple(numbers[2:4])], numbers[4] / 100


def test_every_loss_has_one_row_one_section_and_one_picture(maker):
    names = list(maker.losses())
    assert [name for name, _ in rows()] == names
    assert [name for name, _ in sections()] == names
    assert sorted(maker.WHEN) == names
    assert sorted(file.stem for file in maker.PICTURES.glob("*")) == sorted(
        [*names, "length", "llm_neo_tiny", "statistics", "teacher_cache"]
    )


def test_a_section_has_the_options_formula_and_source_of_the_file(maker):
    for name, text in sections():
        plugin = maker.losses()[name]
        assert text.splitlines() == [
            maker.formula(plugin),
            "",
            f"![{name}](../pictures/{name}.svg)",
            "",
            f"- Options: {maker.options(plugin)}",
            f"- Choose it where {maker.WHEN[name]}.",
            f"- Source: {maker.source(plugin)}",
        ]
        assert maker.source(plugin) != "-"


def test_the_costs_are_the_measured_ones(maker, measured):
    inner = "\n".join([*maker.summary(measured), "", maker.costs(measured)])
    assert maker.replace_between(TEXT, "costs", inner) == TEXT
    assert {name: cells[3] for name, cells in rows()} == {name: maker.cost(name, measured) for name in maker.losses()}


def test_a_picture_has_the_numbers_of_its_row(maker):
    for name, cells in rows():
        drawn = (maker.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
        behaviour, where = re.search(r"<title>\w+: (\w+); lands at (.*)</title>", drawn).groups()
        assert cells[:2] == [behaviour, where]


def test_the_raised_share_of_every_loss_is_that_of_its_row(maker):
    for name, cells in rows():
        raised = maker.push_of(maker.losses()[name]).clamp(min=0)
        assert raised[maker.MISSED].sum() / raised.sum() == pytest.approx(minimum(cells)[1], abs=0.011), name


def test_the_minimum_of_forward_kl_has_the_teachers_moments(maker):
    """A Gaussian is an exponential family: the minimiser of forward KL has the teacher's mean and variance."""
    (fitted, *_), _ = minimum(dict(rows())["forward_kl"])
    q = maker.gaussian(*maker.student_of([maker.fit(maker.losses()["forward_kl"]).final[0]])).detach().exp()[0]
    p = maker.teacher().exp()
    for power in (maker.GRID, maker.GRID**2):
        torch.testing.assert_close(q @ power, p @ power, atol=0.01, rtol=0.01)
    assert fitted == pytest.approx((-0.5, 2.3))


@pytest.mark.slow
def test_jsds_gradient_norms_are_those_of_the_page(maker):
    assert maker.replace_between(TEXT, "strength", maker.strength()) == TEXT
    found = maker.values_and_gradient_norms()
    low, middle, high = (norm for name, (_, norm) in found.items() if name.startswith("jsd"))
    assert max(low, high) < middle / 2 < found["forward_kl"][1] / 4


@pytest.mark.slow
def test_the_minimum_of_every_loss_is_that_of_its_row(maker):
    for name, cells in rows():
        found = maker.fit(maker.losses()[name])
        for here, there in zip(found.final, minimum(cells)[0], strict=True):
            assert here == pytest.approx(there, abs=0.15), name
        assert cells[0] == found.behaviour, name

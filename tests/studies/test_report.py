"""The report of a study: what its page and its LaTeX tables state, for whole studies and for what is left of some."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neoplug.errors import DamageError, UsageError
from neoplug.studies.report import numbers
from neoplug.studies.report.answers import answers_of
from neoplug.studies.report.figures.costs import front
from neoplug.studies.report.figures.curves import quartiles
from neoplug.studies.report.latex import in_latex
from neoplug.studies.report.material import read_material
from neoplug.studies.report.page import write_report
from neoplug.studies.statistics.paired import detectable_effect, mean_interval, seeds_to_detect
from neoplug.studies.summary import summarise

from .written import write_small_study, write_study

VOID = {"meta", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements of a page; raises AssertionError where one is not closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.elements, self.words = text, [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def visible(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    """Return the report's page, after checks that hold for every page."""
    file, latex = write_report(folder)
    page = Page(file.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for attributes in page.all("a") if attributes["href"].startswith("#")}
    assert targets <= set(ids)
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\((?!#)", page.text)  # nothing is loaded
    for attributes in page.all("div"):
        assert attributes.get("role") != "img" or attributes["aria-label"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert "nan" not in page.visible.lower().split()
    assert ">None<" not in page.text
    assert latex.read_text(encoding="utf-8").count(r"\begin{longtable}") >= 1
    return page


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("studies") / "whole", failed=[("moslora", "neo", 3)])


@pytest.fixture(scope="module")
def page(study):
    return page_of(study)


def test_the_answer_comes_first_and_is_that_of_the_summary(page, study):
    text = page.visible
    assert text.index("Answer") < text.index("Contents") < text.index("Scores of the arms")
    assert "Robust. All 8 arms are better than their controls" in text
    runs = pd.read_parquet(study / "results.parquet").query("kind == 'test' and status == 'completed'")
    scores = runs.pivot_table(index="seed", columns=["adapter", "loss"], values="cross_entropy")
    gains = {
        (adapter, loss): (scores[adapter, "ce"] - scores[adapter, loss]).dropna().mean()
        for adapter, loss in scores.columns
        if loss != "ce"
    }
    weakest, strongest = min(gains, key=gains.get), max(gains, key=gains.get)
    assert f"The gains range from {gains[weakest]:.3f} nats ({'/'.join(weakest)})" in text
    assert f"to {gains[strongest]:.3f} nats ({'/'.join(strongest)})" in text


def test_scores_have_the_intervals_of_scipy_and_lead_to_their_runs(page, study):
    runs = pd.read_parquet(study / "results.parquet").query("kind == 'test' and status == 'completed'")
    values = runs.query("adapter == 'lora' and loss == 'ce'")["cross_entropy"]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values.to_numpy()) == pytest.approx((low, high))
    assert f"[{low:.3f},\u00a0{high:.3f}]" in page.text
    first = next(attributes["id"] for attributes in page.all("tr") if attributes.get("id"))
    assert f'<a href="#{first}">{values.mean():.3f}</a>' in page.text
    kept = runs[runs["run"] != ""]
    assert len(kept) > 5
    assert all(f'href="{run}"' in page.text for run in kept["run"])


def test_each_run_has_a_row_and_failures_have_their_reason(page, study):
    rows = [attributes for attributes in page.all("tr") if attributes.get("id", "").startswith("run-")]
    assert len(rows) == len(pd.read_parquet(study / "results.parquet"))
    failures = page.text[page.text.index('id="failures"') : page.text.index('id="protocol"')]
    assert failures.count("the loss is not finite at step 12") == 7  # one test run, 6 of the search


def test_every_plot_is_there_and_what_is_not_measured_is_stated(page):
    names = {"s": 3, "d": 2, "m": 3, "r": 3, "k": 1, "l": 1, "c": 1}  # scores, differences, maps, ranks, rates, ...
    assert len(page.all("figure")) == sum(names.values())
    assert "A reliability diagram and the KL by bins of the teacher’s entropy need sums by bin" in page.visible
    assert "95\u202f% t intervals over seeds" in page.text
    for fact in ("Tuning", "Budgets", "Planned comparisons", "Failures", "Compute", "Licences", "Error bars"):
        assert f"<dt>{fact}</dt>" in page.text


def test_svg_has_real_text_and_the_colours_of_the_page(page):
    svg = page.text[page.text.index("<svg") : page.text.rindex("</svg>")]
    assert svg.count("<text") > 200
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours)


def test_the_same_study_has_the_same_page(tmp_path):
    folder = write_small_study(tmp_path / "again")
    first = write_report(folder)[0].read_text(encoding="utf-8")
    assert write_report(folder)[0].read_text(encoding="utf-8") == first
    moved = write_report(folder, tmp_path / "elsewhere" / "page.html")[0]
    assert re.search(r'href="../again/runs/', moved.read_text(encoding="utf-8"))


def test_latex_is_balanced_and_has_all_comparisons(study, page):
    text = (study / "tables.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 5
    assert text.count(r"\toprule") == 10
    assert "moslora/forward\\_kl" in text
    assert "untrained" in text
    for table in text.split(r"\begin{longtable}")[1:]:
        columns = len(re.match(r"\{@\{\}([lr]+)@\{\}\}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert {line.count(" & ") for line in rows} == {columns - 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & c%", r"a\_b \& c\%"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("$x^2$ #1 ~", r"\$x\textasciicircum{}2\$ \#1 \textasciitilde{}"),
        ("[\u22121.5,\u00a02]", "{[}$-$1.5,~2{]}"),
        ("\x1b[2J\u202e", "\\textbackslash{}x1b{[}2J\\textbackslash{}u202e"),
        ("3 × 10⁻⁴", r"3 $\times$ 10$^{-}$$^{4}$"),
    ],
)
def test_latex_has_no_command_of_a_name(text, expected):
    assert in_latex(text) == expected


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{",
    "\x1b[31m\u202eevil",
    "a&b",
    "{{ 7*7 }}",
)


def test_names_are_text(tmp_path):
    folder = write_small_study(tmp_path / "hostile", adapters=HOSTILE, name="<b>x</b>\u202e", curves=False)
    page = page_of(folder)
    assert not page.all("img")
    assert not page.all("b")
    assert len(page.all("script")) == 1
    assert page.text.count("<script") == 1
    assert "{{ 7*7 }}/neo" in page.visible
    assert "\\x1b[31m\\u202eevil/ce" in page.visible
    assert not {"\x1b", "\u202e"} & set(page.text)


def test_a_reason_is_text_without_credentials(tmp_path):
    folder = write_small_study(tmp_path / "reasons", failed=[("lora", "neo", 1)], search=False, curves=False)
    runs = pd.read_parquet(folder / "results.parquet")
    runs["reason"] = runs["reason"].where(runs["reason"] == "", "<i>\x1b at https://me:secret@host/x\nsecond line")
    runs["run"] = runs["run"].where(runs["run"] == "", "javascript:alert(1)")
    (folder / "javascript:alert(1)").mkdir()
    runs.to_parquet(folder / "results.parquet")
    page = page_of(folder)
    assert "<i>\\x1b at https://" in page.visible
    assert "secret" not in page.text
    assert 'href="javascript%3Aalert%281%29"' in page.text


def test_one_seed_has_estimates_without_intervals(tmp_path):
    page = page_of(write_small_study(tmp_path / "one", seeds=(7,)))
    assert "Undecided." in page.visible
    assert "There is no test: it takes two seeds" in page.visible
    assert "With 1 test seed, fewer than 5, this supports no claim." not in page.visible  # there is no test to qualify
    assert "1 test seed: fewer than 5 support no claim" in page.visible


def test_three_seeds_support_no_claim(tmp_path):
    page = page_of(write_small_study(tmp_path / "three", seeds=(1, 2, 3)))
    assert "With 3 test seeds, fewer than 5, this supports no claim." in page.visible


def test_a_study_without_comparisons_is_exploratory(tmp_path):
    page = page_of(write_small_study(tmp_path / "none", contrasts=False, search=False))
    assert "The study has no answer: it plans no comparison." in page.visible
    assert "The study tunes nothing." in page.visible
    assert len(page.all("figure")) == 5  # scores, map, ranks, learning, costs


def test_a_study_of_which_all_runs_failed_says_so_on_top(tmp_path):
    page = page_of(write_small_study(tmp_path / "failed", failed="all"))
    assert page.visible.index("No test run of this study completed") < page.visible.index("Answer")
    assert "2 comparisons have no completed pair of runs" in page.visible
    assert "No curve was kept" in page.visible


def test_a_study_without_any_row_has_a_page(tmp_path):
    folder = write_small_study(tmp_path / "empty")
    pd.read_parquet(folder / "results.parquet").iloc[:0].to_parquet(folder / "results.parquet")
    page = page_of(folder)
    assert "This study is not finished: 0 of 20 test runs have ended." in page.visible


def test_an_unfinished_study_says_so_on_top(tmp_path):
    folder = write_small_study(tmp_path / "unfinished", missing=[("lora", "neo", 4), ("dora", "neo", 4)])
    (folder / "status.json").write_text(json.dumps({"phase": "test"}))
    page = page_of(folder)
    assert "not finished: 18 of 20 test runs have ended. It is in the phase “test”." in page.visible
    assert page.visible.index("not finished") < page.visible.index("Answer")
    assert "2 test runs have not ended" in page.visible


def test_documents_curves_and_summary_may_be_missing(tmp_path):
    folder = write_small_study(tmp_path / "few", documents=False, curves=False)
    page = page_of(folder)
    assert "with documents" not in page.visible
    assert "No curve was kept" in page.visible
    for name in ("references.parquet", "study.lock.json", "ledger.jsonl"):
        (folder / name).unlink()
    assert "Not known: the study has no lock." in page_of(folder).visible


def test_curves_are_read_from_kept_runs(tmp_path):
    folder = write_small_study(tmp_path / "kept", curves=False)
    for run in pd.read_parquet(folder / "results.parquet")["run"]:
        if run:
            lines = [json.dumps({"tokens": 100, "loss": 3 - 0.1 * step}) for step in range(20)]
            (folder / run / "metrics.jsonl").write_text("\n".join([*lines, '{"tok']))
    assert "curves were kept (1 an arm)" in page_of(folder).visible


def test_quartiles_of_curves_are_those_of_numpy():
    rng = np.random.default_rng(0)
    tokens = np.arange(1.0, 61.0)
    losses = rng.normal(size=(5, 60))
    grid, low, middle, high = quartiles([(tokens, loss) for loss in losses])
    assert grid == pytest.approx(tokens)
    for found, share in ((low, 25), (middle, 50), (high, 75)):
        assert found == pytest.approx(np.percentile(losses, share, axis=0))
    long = np.arange(1.0, 12_001.0)
    grid, _, middle, _ = quartiles([(long, 3 - long / 6000)])
    assert len(grid) == 120
    assert middle == pytest.approx(3 - grid / 6000)


def test_local_paths_are_not_on_the_page(tmp_path):
    folder = write_small_study(tmp_path / "paths", search=False, curves=False)
    lock = {"version": "0.1.0", "contents": {json.dumps({"model": "/data/secret/teacher", "revision": None}): "0"}}
    (folder / "study.lock.json").write_text(json.dumps(lock))
    facts = json.loads((folder / "study.json").read_text())
    changes = ["teacher.model=/data/secret/teacher", "data.source=https://host/secret/rows"]
    (folder / "study.json").write_text(json.dumps(facts | {"overrides": changes}))
    runs = pd.read_parquet(folder / "results.parquet")
    runs.loc[0, ["status", "reason"]] = ["failed", f"the file `/data/secret/a.json`:3 and {tmp_path}/b.json: damaged"]
    runs.to_parquet(folder / "results.parquet")
    page = page_of(folder)
    assert "<dd>teacher. Hashes of their contents" in page.text
    assert "the file `a.json`:3 and b.json: damaged" in page.visible
    assert "teacher.model=teacher data.source=https://host/secret/rows" in page.visible
    assert "/data/secret" not in page.text + (folder / "tables.tex").read_text()
    assert str(tmp_path) not in page.text


def test_tables_in_csv_are_read_alike(tmp_path):
    folder = write_small_study(tmp_path / "csv", adapters=("8", "NA", "none"))
    expected = page_of(folder).visible
    (folder / "results.parquet").unlink()
    assert page_of(folder).visible == expected.replace("results.parquet : the same with types", "").replace("  ", " ")


def test_a_written_summary_is_shown_as_it_is(study, tmp_path):
    material = read_material(study)
    assert material.summary == summarise(
        material.study, material.runs, pd.read_parquet(study / "documents.parquet"), material.references
    )
    folder = write_small_study(tmp_path / "summed", search=False, curves=False)
    changed = read_material(folder).summary.model_copy(update={"remarks": ["a remark of this file alone"]})
    (folder / "summary.json").write_text(changed.model_dump_json())
    assert "a remark of this file alone" in page_of(folder).visible
    (folder / "summary.json").write_text(material.summary.model_dump_json())  # of a study with other arms
    assert "moslora" not in page_of(folder).visible


@pytest.mark.parametrize(("adapters", "losses"), [(2, 5), (12, 8)])
def test_many_arms_have_a_page_of_limited_size(tmp_path, adapters, losses):
    names = [f"variant_{number}" for number in range(adapters)], ["ce", *(f"loss_{n}" for n in range(1, losses))]
    folder = write_small_study(
        tmp_path / "many", adapters=names[0], losses=names[1], search=False, curves=False, documents=False
    )
    write_report(folder)
    assert (folder / "report.html").stat().st_size < 30_000 * adapters * losses


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no directory of a study"):
        write_report(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("recipe.yaml", "lock.json"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(UsageError, match="is a run, and a report is about a study"):
        write_report(tmp_path / "run")
    folder = write_small_study(tmp_path / "begun")
    for name in ("results.parquet", "results.csv"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match="has no results yet"):
        write_report(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", "{"),
        ("study.json", '{"format": 1}'),
        ("study.json", '{"name": 1, "axes": []}'),
        ("results.parquet", "PAR1"),
        ("documents.parquet", "PAR1"),
        ("references.parquet", ""),
        ("summary.json", '{"contrasts": 1}'),
        ("status.json", "[]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = write_small_study(tmp_path / "damaged")
    (folder / name).write_text(content)
    with pytest.raises(DamageError, match=name):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_answers_of_all_kinds(tmp_path):
    kinds = {
        "yes": {"ce": 0.0, "neo": 0.3},
        "no": {"ce": 0.3, "neo": 0.0},
        "undecided": {"ce": 0.0, "neo": 0.012},
    }
    expected = {
        "yes": "All 2 arms are better than their controls",
        "no": "lora/neo and dora/neo are worse than their controls",
        "undecided": "None of 2 arms is shown to be better than their controls",
    }
    for kind, gain in kinds.items():
        folder = write_small_study(tmp_path / kind, gain=gain, noise=0.02, search=False, curves=False)
        found = answers_of(read_material(folder))
        assert [answer.robust for answer in found] == [kind]
        assert expected[kind] in "".join(getattr(part, "text", part) for part in found[0].verdict)
        (changes,) = [sentences for heading, sentences in found[0].parts if heading == "What would change it"]
        text = " ".join("".join(map(str, sentence)) for sentence in changes)
        assert ("seeds find a difference of the margin" in text) == (kind == "undecided")


def test_equivalent_arms_are_named(tmp_path):
    folder = write_small_study(tmp_path / "same", gain={"ce": 0, "neo": 0}, noise=0.001, search=False, curves=False)
    assert "no different from their controls (loss=ce) by more than the margin" in page_of(folder).visible


def test_seeds_to_detect_is_the_smallest_number():
    for difference, sd, k in ((0.02, 0.01, 1), (0.02, 0.05, 7), (1.0, 0.1, 35)):
        n = seeds_to_detect(difference, sd, k)
        assert sd * detectable_effect(n, k) <= difference
        assert n == 2 or sd * detectable_effect(n - 1, k) > difference
    assert seeds_to_detect(1e-6, 1.0, 1) is None


def test_a_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(50):
        costs, losses = rng.integers(0, 6, 12).tolist(), rng.integers(0, 6, 12).tolist()
        points = list(zip(costs, losses, strict=True))
        beaten = [any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in points) for one in points]
        assert sorted(front(costs, losses)) == [at for at in range(12) if not beaten[at]]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.fixed(-0.0004, 3), "0.000"),
        (numbers.fixed(-1.5, 1, signed=True), "\u22121.5"),
        (numbers.fixed(1.5, 1, signed=True), "+1.5"),
        (numbers.fixed(0.0, 2, signed=True), "0.00"),
        (numbers.fixed(None), "–"),
        (numbers.fixed(float("nan")), "–"),
        (numbers.p_value(0.0004), "<\u00a00.001"),
        (numbers.p_value(0.034), "0.034"),
        (numbers.p_value(1.0), "1.00"),
        (numbers.short(0.00012345), "1.23\u00a0×\u00a010⁻⁴"),
        (numbers.short(12345.6), "12,346"),
        (numbers.short(1.23456), "1.23"),
        (numbers.short(0.0), "0.00"),
        (numbers.plain(1e-4), "10⁻⁴"),
        (numbers.plain(3e-4), "3\u00a0×\u00a010⁻⁴"),
        (numbers.plain(0.02), "0.02"),
        (numbers.duration(7384), "2.1\u00a0h"),
        (str(numbers.decimals_for([0.012, 0.02, 0.03])), "3"),
        (str(numbers.decimals_for([])), "3"),
        (str(numbers.decimals_for([120.0])), "0"),
    ],
)
def test_numbers_as_text(shown, expected):
    assert shown == expected

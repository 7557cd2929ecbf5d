"""The measured compatibility matrix: read without import, summarised as text, and used to refuse a recipe."""

import json
from types import SimpleNamespace

import pytest

from neoplug.errors import RecipeError
from neoplug.registry import Entry, find
from neoplug.registry import compatibility as matrix
from neoplug.registry.compatibility import Finding, Matrix, Row
from neoplug_adapters.lora import LoRA

NF4 = {"at": "train", "why": "the loss does not fall", "where": {"nf4": ["llama", "opt"], "plain": ["opt"]}}
BOTH = {"plain": ["llama", "opt"], "nf4": ["llama", "opt"]}
FILE = {
    "versions": {"torch": "0.1", "no_such_package": "1"}, "device": "cpu", "unless": ["target_modules"],
    "loadings": ["plain", "nf4"], "families": ["llama", "opt"],
    "rows": {
        "lora": {"kind": "a", "parameters": 100, "findings": [NF4]},
        "near": {"kind": "b", "parameters": 110, "findings": []},
        "far": {"kind": "b", "parameters": 10000, "findings": []},
        "broken": {"kind": "a", "parameters": 100, "findings": [NF4 | {"where": BOTH}]},
    },
}  # fmt: skip


@pytest.fixture
def measured(tmp_path):
    (tmp_path / "matrix.json").write_text(json.dumps(FILE))
    return Matrix.read(tmp_path / "matrix.json")


def test_the_summary_names_the_families_that_work(measured):
    summaries = {
        (name, way): matrix.summary(measured, name, way) for name in measured.rows for way in measured.loadings
    }
    assert summaries["lora", "plain"] == "all but opt"
    assert summaries["lora", "nf4"] == "none"
    assert summaries["near", "nf4"] == "all"


def test_reasons_group_the_loadings_of_the_same_families(measured):
    (line,) = matrix.reasons(measured, "broken")
    assert line == "does not train on every family (plain, nf4): the loss does not fall"


def test_suggested_adapters_work_and_have_a_similar_number_of_parameters(measured):
    assert measured.nearest("lora", "nf4", "llama") == (["plain"], ["near", "far"])
    assert measured.nearest("lora", "plain", "opt") == ([], ["near", "far"])


def test_adapters_of_the_same_kind_are_suggested_first(measured):
    measured.rows["similar"] = Row("a", 50000, [])
    assert measured.nearest("lora", "nf4", "llama")[1] == ["similar", "near", "far"]


def test_versions_that_differ_are_named(measured):
    differing = measured.differing()
    assert differing["no_such_package"] == ("1", None)
    assert differing["torch"][0] == "0.1"
    assert "no no_such_package" in matrix.measured_with(measured)


def test_a_matrix_is_read_without_importing_its_package(tmp_path, monkeypatch):
    (tmp_path / "third_party_adapters").mkdir()
    (tmp_path / "third_party_adapters" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "third_party_adapters" / "matrix.json").write_text(json.dumps(FILE))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert matrix.matrix_for(Entry("near", "third-party", "1", "third_party_adapters.near:Near")).families == [
        "llama",
        "opt",
    ]
    assert matrix.matrix_for(Entry("unmeasured", "third-party", "1", "third_party_adapters.near:Near")) is None
    assert matrix.matrix_for(Entry("near", "third-party", "1", "nowhere_at_all.near:Near")) is None


@pytest.fixture
def checked(measured, monkeypatch, tmp_path):
    """Return a function that makes the parts of a resolved recipe that the validation reads."""
    monkeypatch.setattr(matrix, "matrix_for", lambda entry: measured)

    def make(loads=(), **options):
        loaders = {("student.load", name): find(name, tmp_path) for name in loads}
        plugins = SimpleNamespace(
            named=lambda hook: [("adapter", "lora")], section=lambda name: {"lora": LoRA(**options)}
        )
        return SimpleNamespace(plugins=plugins, entries={("adapter", "lora"): find("lora", tmp_path)} | loaders)

    return make


def test_what_fails_is_refused_with_reason_versions_and_fix(checked):
    with pytest.raises(RecipeError) as caught:
        matrix.validate_compatibility(checked(["nf4"]), "llama")
    (problem,) = caught.value.problems
    assert problem.path == ("adapter", "lora")
    assert "`lora` does not train on models of the family `llama` loaded by `nf4`" in problem.what
    assert "the loss does not fall" in problem.why
    assert "torch 0.1" in problem.why
    assert problem.fix == "load the student unquantised; or name `near` or `far`"


def test_options_that_help_come_first(checked, measured):
    finding = Finding("train", "the loss does not fall", {"plain": ["opt"]}, {"target_modules": ["q_proj", "v_proj"]})
    measured.rows["lora"] = Row("a", 100, [finding])
    with pytest.raises(
        RecipeError,
        match=r"fix: write `lora: \{target_modules: \[q_proj, v_proj\]\}`; or load the student by `nf4`; or",
    ):
        matrix.validate_compatibility(checked(), "opt")


@pytest.mark.parametrize(
    ("loads", "options", "family"),
    [
        ([], {}, "llama"),  # works
        ([], {}, "bert"),  # a family that was not tried
        (["nf4", "int8"], {}, "llama"),  # a loading that was not tried
        (["nf4"], {"target_modules": ["q_proj"]}, "llama"),  # layers that were not tried
    ],
)
def test_what_was_not_measured_is_allowed(checked, loads, options, family):
    matrix.validate_compatibility(checked(loads, **options), family)


def test_what_the_adapter_refuses_itself_is_not_refused_twice(checked, measured):
    measured.rows["lora"] = Row("a", 100, [Finding("refused", "its own", {"plain": ["llama"]})])
    matrix.validate_compatibility(checked(), "llama")

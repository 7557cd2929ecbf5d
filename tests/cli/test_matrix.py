"""`plugins --matrix`, and `plan` for a pair that fails by the matrix."""

import json
from pathlib import Path

import pytest

from neoplug.registry import compatibility as matrix
from neoplug.registry.compatibility import PLAIN, REFUSED, Matrix
from neoplug.testing.families import make

SHIPPED = Matrix.read(Path(__file__).parents[2] / "plugins" / "neoplug_adapters" / "matrix.json")


def test_the_table_has_a_row_for_each_adapter_and_the_versions(neoplug):
    lines = neoplug("plugins", "--matrix").out.splitlines()
    start = lines.index("works on") + 1
    assert lines[start].split() == ["adapter", *SHIPPED.loadings]
    assert [line.split()[0] for line in lines[start + 1 : start + 1 + len(SHIPPED.rows)]] == list(SHIPPED.rows)
    for package, version in SHIPPED.versions.items():
        assert f"{package} {version}" in lines[0]


def test_other_versions_than_the_measured_ones_are_printed(neoplug, monkeypatch):
    monkeypatch.setattr(matrix, "version_of", lambda package: None if package == "peft" else "7.7")
    out = neoplug("plugins", "--matrix").out
    assert f"here torch is 7.7, not {SHIPPED.versions['torch']}" in out
    assert "here peft is not installed" in out


def test_json_holds_the_data(neoplug):
    (found,) = json.loads(neoplug("plugins", "--matrix", "--json").out)
    assert found["families"] == SHIPPED.families
    assert set(found["rows"]) == set(SHIPPED.rows)
    assert set(found["differing"]) <= set(SHIPPED.versions)


def test_the_matrix_of_one_adapter_is_printed(neoplug):
    out = neoplug("plugins", "pissa", "--matrix").out
    assert "pissa refuses every family" in out
    assert "\nlora " not in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["jsd", "--matrix"], "there are no measurements of `jsd`"), (["--section", "loss", "--matrix"], "not both")],
)
def test_an_adapter_without_measurements_exits_2(neoplug, arguments, reason):
    answer = neoplug("plugins", *arguments)
    assert answer.code == 2
    assert reason in answer.err


def known_failures():
    """Yield pairs that only a measurement finds: they fail on real weights, or train wrongly without an error."""
    for name, row in SHIPPED.rows.items():
        for found in row.findings:
            if found.at != REFUSED and PLAIN in found.where:
                yield name, found.where[PLAIN][0], found


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_pair_that_is_known_to_fail_is_refused_before_a_weight_is_read(
    neoplug, recipe, command, tmp_path, monkeypatch
):
    import transformers

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    name, family, found = next(failure for failure in known_failures() if failure[2].options)
    folder = make(family, tmp_path / family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    models = [f"teacher.model={folder}", f"student.model={folder}"]
    answer = neoplug(command, recipe, *models, f"adapter={{{name}: {{}}}}")
    assert answer.code == 2
    expected = [f"`{name}`", f"of the family `{family}`", found.why, f"fix: write `{name}: {{target_modules: ["]
    expected += ["(measured with neoplug", f"peft {SHIPPED.versions['peft']}"]
    assert [words for words in expected if words not in answer.err] == []
    assert not (tmp_path / "runs").exists()

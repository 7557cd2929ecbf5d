"""`neoplug check`: one line for each property, the smallest example where one fails, and exit code 0, 1 or 2."""

import json
import re
from pathlib import Path

import pytest

from neoplug.testing import KITS, LOAD, LOSS, OPTIMIZER, PREPARATION, PROBE, TOKEN_WEIGHT, TRACKER, TREATMENT

FILE = Path(__file__).parent / "checked.py"
EVERY = set(LOSS.properties)


def verdicts(text):
    """Return {property: verdict} of the printed lines."""
    return {
        name: verdict for verdict, name in re.findall(r"^  (holds|does not hold|exempt|not tried) +(\w+)", text, re.M)
    }


def line(text):
    """Return the number of the line of this file's losses that holds `text`."""
    return next(n for n, found in enumerate(FILE.read_text().splitlines(), 1) if text in found)


def test_a_correct_loss_passes_with_the_same_report_each_time(neoplug, monkeypatch):
    monkeypatch.chdir(FILE.parent)
    answer = neoplug("check", "./checked.py:Jeffreys", "scale=2e0")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith("./checked.py:Jeffreys  scale=2.0\nimplements token_loss; fits under loss\n")
    found = verdicts(answer.out)
    absent = {"closed_form", "formula", "buckets", "linear", "sparse_closed_form"}
    assert found == dict.fromkeys(EVERY - absent, "holds") | dict.fromkeys(absent, "not tried")


@pytest.mark.slow
def test_a_faulty_loss_is_shown_with_its_smallest_example(neoplug):
    answer = neoplug("check", f"{FILE}:Negative")
    assert answer.code == 1
    found = verdicts(answer.out)
    assert found.pop("not_negative") == "does not hold"
    assert found.pop("zero_where_equal") == "exempt"
    assert "does not hold" not in found.values()
    assert "on purpose: for the test\n" in answer.out
    student, teacher, value = (
        json.loads(re.search(rf"^    {name} +(.*)$", answer.out, re.M)[1]) for name in ("student", "teacher", "found")
    )
    assert len(student) == len(teacher) == len(value) == 1
    assert sorted(student + teacher, key=lambda row: sum(map(abs, row)))[0] == [0, 0]
    assert -0.1 < value[0] < -1e-4
    assert answer == neoplug("check", f"{FILE}:Negative")


@pytest.mark.slow
def test_the_guide_shows_the_real_output(neoplug, monkeypatch, tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "write-a-plugin.md").read_text()
    jeffreys = re.search(r'^```python\n("""Jeffreys.*?)^```', guide, re.M | re.S)[1]
    assert jeffreys.count(".sum(-1) / 2") == 1
    (tmp_path / "jeffreys.py").write_text(jeffreys.replace(".sum(-1) / 2", ".sum(-1) / len(student)"))
    monkeypatch.chdir(tmp_path)
    shown = re.search(r"^```console\n\$ neoplug (check .*)\n([^`]*)```", guide, re.M)
    answer = neoplug(*shown[1].split())
    assert answer.out == shown[2]
    assert answer.code == 1


def test_json_holds_numbers_that_are_not_finite(neoplug):
    answer = neoplug("check", f"{FILE}:Infinite", "--json")
    assert answer.code == 1
    report = json.loads(answer.out, parse_constant=pytest.fail)
    assert {one["name"] for one in report["properties"]} == EVERY
    (finite,) = (one for one in report["properties"] if one["name"] == "finite")
    assert (finite["verdict"], finite["found"]) == ("does not hold", ["nan"])
    assert set(finite["example"]) == {"student", "teacher", "labels", "progress"}


def test_a_crash_is_reported_with_its_line(neoplug):
    answer = neoplug("check", f"{FILE}:Crashes")
    assert answer.code == 1
    assert verdicts(answer.out)["shape"] == "does not hold"
    assert f"it crashes: ZeroDivisionError: no mean of 1\n    at {FILE}:{line('no mean of')}\n" in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jefreys"], ["no plugin is named `jefreys`; did you mean `jeffreys`?"]),
        ([f"{FILE}:Jefreys"], ["did you mean `Jeffreys`?"]),
        ([f"{FILE}:Plain"], ["checked.py:{class Plain}:1: Plain is not a dataclass"]),
        ([f"{FILE}:Idle"], ["checked.py:{class Idle}:1: Idle implements no hook"]),
        (
            [f"{FILE}:GradientAlone"],
            ["GradientAlone implements token_gradient, but no hook of any section", "fix: write one, marked @hookimpl"],
        ),
        (
            [f"{FILE}:Unmarked"],
            ["checked.py:{def on_step}:5: ", "`on_step`; did you mean `on_step_end`?", "not marked"],
        ),
        ([f"{FILE}:Weighted"], ["option `weight`, which neoplug reads itself"]),
        ([f"{FILE}:Excused"], ["checked.py:{class Excused}:1: ", "`finit`"]),
        ([f"{FILE}:Jeffreys", "scle=1", "scale=x"], ["did you mean `scale`?", "must be a number"]),
        ([f"{FILE}:Jeffreys", "scale"], ["an option is written key=value"]),
    ],
)
def test_an_invalid_plugin_exits_2_with_place_and_reason(neoplug, arguments, words):
    answer = neoplug("check", *arguments)
    assert (answer.code, answer.out) == (2, "")
    for word in words:
        assert re.sub(r"\{(.*)\}", lambda match: str(line(match[1])), word) in answer.err
    assert "Traceback" not in answer.err


def test_hooks_without_properties_are_listed_as_not_checked(neoplug):
    answer = neoplug("check", "loraplus")
    assert answer.code == 0
    assert "lr_ratio=" in answer.out
    assert "fits under adapter, optimizer" in answer.out
    assert re.search(r"not checked\n  its behaviour in .*param_groups", answer.out)


@pytest.mark.parametrize(
    ("arguments", "kit"),
    [
        (["ladder"], KITS["add_adapter"]),
        (["label_noise", "probability=0.2"], TREATMENT),
        (["sgd"], OPTIMIZER),
        (["calibration"], PROBE),
        (["nf4", "compute_dtype=float32"], LOAD),
        (["prune_depth", "num_hidden_layers=3"], PREPARATION),
        (["tensorboard"], TRACKER),
    ],
)
def test_each_kind_has_its_own_properties(neoplug, arguments, kit):
    answer = neoplug("check", *arguments)
    assert answer.code == 0
    assert f"\nproperties of every {kit.kind}\n" in answer.out
    assert verdicts(answer.out).keys() == kit.properties.keys()
    assert "does not hold" not in answer.out
    assert "not checked" not in answer.out


def test_what_a_plugin_prints_is_no_part_of_the_report(neoplug):
    answer = neoplug("check", f"{FILE}:Prints", "--json")
    assert {one["verdict"] for one in json.loads(answer.out)["properties"]} == {"holds"}
    assert "logged step 1\n" in answer.err


def test_a_token_weight_has_its_own_properties(neoplug):
    answer = neoplug("check", "position", "half_life=8")
    assert answer.code == 0
    assert "\nproperties of every token weight\n" in answer.out
    assert verdicts(answer.out) == dict.fromkeys(TOKEN_WEIGHT.properties, "holds")


def test_without_hypothesis_the_extra_is_named(neoplug, monkeypatch):
    monkeypatch.setattr("neoplug.cli.plugin_report.find_spec", lambda name: None)
    answer = neoplug("check", "jsd")
    assert answer.code == 2
    assert "pip install 'neoplug[check]'" in answer.err


def test_a_loss_that_reads_a_model_is_not_tried(neoplug):
    done = neoplug("check", f"{FILE}:WantsModel")
    assert done.code == 0
    assert set(verdicts(done.out).values()) == {"not tried"}
    assert "`after_load` gives it a model" in done.out

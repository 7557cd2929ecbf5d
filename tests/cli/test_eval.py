"""`neoplug eval` prints a table or JSON, and refuses what it cannot evaluate."""

import json

import pytest


def test_a_model_is_evaluated(neoplug, recipe, tiny_student, tmp_path):
    printed = neoplug("eval", tiny_student, recipe, "probes={calibration: {}}")
    assert printed.code == 0, printed.err
    header, *rows = printed.out[printed.out.index("on held-out text") :].splitlines()[1:]
    assert header.split() == ["student", "teacher"]
    table = {row[: row.index("  ")]: row.split()[-2:] for row in rows if "  " in row}
    answer = neoplug("eval", tiny_student, recipe, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)  # stdout has nothing but the JSON
    assert table["perplexity"] == [f"{found[role]['perplexity']:,.1f}" for role in ("student", "teacher")]
    assert float(table["calibration.ece"][1]) > 0
    assert not list(tmp_path.glob("runs"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("./nothing", "there is no file or folder ./nothing"),
        ("NOTHING", "`NOTHING` is not a local folder or .gguf file"),
    ],
)
def test_an_unknown_model_is_refused(neoplug, recipe, target, message):
    answer = neoplug("eval", target, recipe, "data.max_length=32")
    assert answer.code == 2
    assert f"RUN_OR_MODEL:1:1: {message}" in answer.err
    assert f"1 | {target}\n" in answer.err

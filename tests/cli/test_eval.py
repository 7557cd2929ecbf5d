"""`neoplug eval` prints a table or JSON, and says what it cannot measure."""

import json


def test_a_model_is_measured(neoplug, recipe, tiny_student, tmp_path):
    told = neoplug("eval", tiny_student, recipe, "probes={calibration: {}}")
    assert told.code == 0, told.err
    header, *rows = told.out[told.out.index("on held-out text") :].splitlines()[1:]
    assert header.split() == ["student", "teacher"]
    table = {row[: row.index("  ")]: row.split()[-2:] for row in rows if "  " in row}
    answer = neoplug("eval", tiny_student, recipe, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)  # nothing else stands on stdout
    assert table["perplexity"] == [f"{found[role]['perplexity']:,.1f}" for role in ("student", "teacher")]
    assert float(table["calibration.ece"][1]) > 0
    assert not list(tmp_path.glob("runs"))


def test_what_is_nowhere_is_refused(neoplug, recipe, tmp_path):
    answer = neoplug("eval", tmp_path / "nothing", recipe)
    assert (answer.code, answer.out) == (2, "")
    assert f"there is no file or folder {tmp_path}/nothing" in answer.err

"""`neoplug report`: the files that it writes and prints, and what it refuses."""

import importlib.util

from tests.studies.written import write_small_study


def test_it_prints_the_files_that_it_writes(neoplug, tmp_path):
    folder = write_small_study(tmp_path / "study", search=False, curves=False, documents=False)
    answer = neoplug("report", folder)
    assert answer.code == 0
    assert answer.out.splitlines() == [str(folder / "report.html"), str(folder / "tables.tex")]
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    answer = neoplug("report", folder, "--output", tmp_path / "new" / "page.html")
    assert answer.out.splitlines() == [str(tmp_path / "new" / name) for name in ("page.html", "tables.tex")]


def test_what_it_cannot_do_is_one_message(neoplug, tmp_path, monkeypatch):
    answer = neoplug("report", tmp_path)
    assert answer.code == 2
    assert f"{tmp_path} is no directory of a study: it has no study.json" in answer.err
    assert "fix: name the --output of `neoplug study`" in answer.err
    folder = write_small_study(tmp_path / "study", search=False, curves=False, documents=False)
    answer = neoplug("report", folder, "--output", tmp_path)
    assert answer.code == 2
    assert "is a folder" in answer.err
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "neoplug.studies.report.page.find_spec", lambda name: None if name == "matplotlib" else known(name)
    )
    answer = neoplug("report", folder)
    assert answer.code == 2
    assert "fix: pip install 'neoplug[report]'" in answer.err

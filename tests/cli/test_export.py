"""`export`: what it hands on, and what it tells."""

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def asked(monkeypatch):
    """Put a writer of 2,500 bytes in the exporter's place; return what it was asked."""
    calls = []

    def export(run_dir, out, dtype):
        calls.append((run_dir, out, dtype))
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"x" * 2500)

    monkeypatch.setitem(sys.modules, "neoplug.export", SimpleNamespace(export=export))
    return calls


@pytest.mark.parametrize(("options", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_export_tells_what_was_written_and_how_to_load_it(neoplug, tmp_path, asked, options, dtype):
    run, out = tmp_path / "run", tmp_path / ("long" * 40)
    answer = neoplug("export", run, out, *options)
    assert (answer.code, answer.err) == (0, "")
    assert asked == [(run, out, dtype)]
    assert all(type(value) is str for _, _, value in asked)
    assert f"{out}: 2.5 kB, {dtype}\n" in answer.out
    assert f"from_pretrained('{out}')\n" in answer.out


def test_export_tells_that_a_model_brings_code_of_its_own(neoplug, tmp_path, monkeypatch):
    def export(run_dir, out, dtype):
        out.mkdir()
        (out / "modeling_own.py").write_text("")

    monkeypatch.setitem(sys.modules, "neoplug.export", SimpleNamespace(export=export))
    answer = neoplug("export", tmp_path / "run", tmp_path / "out")
    assert f"from_pretrained('{tmp_path / 'out'}', trust_remote_code=True)\n" in answer.out

"""`export`: the arguments that it passes on, and what it prints."""

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def calls(monkeypatch):
    """Replace the exporter by one that writes 2,500 bytes; return its arguments."""
    calls = []

    def export(run_dir, out, dtype, trust):
        calls.append((run_dir, out, dtype))
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"x" * 2500)

    monkeypatch.setitem(sys.modules, "neoplug.export.merge", SimpleNamespace(export=export))
    return calls


@pytest.mark.parametrize(("options", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_export_prints_what_was_written_and_how_to_load_it(neoplug, tmp_path, calls, options, dtype):
    run, out = tmp_path / "run", tmp_path / ("long" * 40)
    answer = neoplug("export", run, out, *options)
    assert (answer.code, answer.err) == (0, "")
    assert calls == [(run, out, dtype)]
    assert all(type(value) is str for _, _, value in calls)
    assert f"{out}: 2.5 kB, {dtype}\n" in answer.out
    assert f"from_pretrained('{out}')\n" in answer.out


def test_export_prints_that_a_model_needs_its_own_code(neoplug, tmp_path, monkeypatch):
    def export(run_dir, out, dtype, trust):
        out.mkdir()
        (out / "modeling_own.py").write_text("")

    monkeypatch.setitem(sys.modules, "neoplug.export.merge", SimpleNamespace(export=export))
    answer = neoplug("export", tmp_path / "run", tmp_path / "out")
    assert f"from_pretrained('{tmp_path / 'out'}', trust_remote_code=True)\n" in answer.out


@pytest.fixture
def lora_calls(monkeypatch):
    """Replace the exporter by one that records its arguments and returns a fidelity."""
    from neoplug.export.low_rank import Fidelity

    calls = []

    def export_lora(run_dir, out, dtype, rank, gguf, trust):
        calls.append((run_dir, out, dtype, rank, gguf))
        out.mkdir()
        (out / "adapter_model.safetensors").write_bytes(b"x" * 2500)
        return Fidelity(rank or 8, 12, 0.25, {"a": (12, 0.3), "b": (4, 0.1)})

    monkeypatch.setitem(sys.modules, "neoplug.export.lora", SimpleNamespace(export_lora=export_lora))
    return calls


@pytest.mark.parametrize(
    ("options", "call", "line"),
    [
        ([], ("float32", None, False), "an approximation: rank 8, and the change has rank 12; relative error 2.5e-01"),
        (
            ["--rank", "12", "--dtype", "float16"],
            ("float16", 12, False),
            "exact up to rounding: the change has rank 12",
        ),
        (["--gguf"], ("float32", None, True), "llama.cpp: --lora "),
        (["--rank", "600"], ("float32", 600, False), "vLLM does not support rank 600"),
        (["--rank", "9"], ("float32", 9, False), "vLLM: --enable-lora --max-lora-rank 16"),
    ],
)
def test_a_lora_is_reported_with_its_error_and_how_to_load_it(neoplug, tmp_path, lora_calls, options, call, line):
    run, out = tmp_path / "run", tmp_path / "out"
    answer = neoplug("export", run, out, "--lora", *options)
    assert (answer.code, answer.err) == (0, "")
    assert lora_calls == [(run, out, *call)]
    assert f"{out}: 2.5 kB, {call[0]}, rank {call[1] or 8} in each of 2 layers\n" in answer.out
    assert line in answer.out
    assert ", at most 3.0e-01 in a layer (a)\n" in answer.out
    assert f"load it on its base: peft.AutoPeftModelForCausalLM.from_pretrained('{out}')\n" in answer.out


@pytest.mark.parametrize("option", [["--rank", "4"], ["--gguf"]])
def test_options_of_a_lora_need_the_option_lora(neoplug, tmp_path, calls, option):
    answer = neoplug("export", tmp_path / "run", tmp_path / "out", *option)
    assert answer.code != 0
    assert f"`{option[0]}` applies only to a LoRA" in answer.err
    assert "fix: add --lora" in answer.err
    assert calls == []

"""The plugin `liger` without its package or a GPU; its kernels are tested in tests/peers_installed."""

import logging
from importlib.util import find_spec

import pytest
import torch

from neoplug.testing.families import make
from neoplug_models import liger

KERNELS_RUN = torch.cuda.is_available() and find_spec("liger_kernel") is not None


@pytest.mark.parametrize("installed", [False, True])
def test_a_recipe_is_refused_without_the_package(monkeypatch, installed):
    monkeypatch.setattr(liger, "find_spec", lambda name: installed or None)
    problems = liger.Liger().check()
    assert [problem.what for problem in problems] == ["the package liger_kernel is not installed"] * (not installed)


@pytest.mark.skipif(KERNELS_RUN, reason="the kernels run here")
def test_a_model_whose_kernels_do_not_run_computes_as_before_and_it_is_said(tmp_path, caplog):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make("llama", tmp_path / "model"))
    ids = torch.arange(2, 12)[None]
    before = model(input_ids=ids).logits
    caplog.set_level(logging.WARNING)
    liger.Liger().after_load(model, "student")
    assert "liger: the layers of the student compute as without it: its kernel does not run (" in caplog.text
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif(not KERNELS_RUN, reason="this needs a GPU and the package liger_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_on_a_gpu(tmp_path, dtype):
    """As near to float64 as the model's own layers, up to a factor of 2."""
    from transformers import AutoModelForCausalLM

    folder = make("llama", tmp_path / "model")
    exact, plain, fast = (AutoModelForCausalLM.from_pretrained(folder, dtype=t) for t in (torch.float64, dtype, dtype))
    fused, kept = liger.fuse(fast.cuda())
    assert fused == {"RMSNorm": 5, "SwiGLU": 2}
    assert not kept
    ids = torch.arange(2, 12)[None]
    expected = exact(input_ids=ids).logits
    ours, theirs = ((model(input_ids=ids.cuda()).logits.cpu() - expected).norm() for model in (fast, plain.cuda()))
    assert ours < 2 * theirs

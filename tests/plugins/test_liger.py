"""The plugin `liger` without its package or a GPU; its kernels are tested in tests/peers_installed."""

import logging
from importlib.util import find_spec

import pytest
import torch

from neoplug.testing.families import make
from neoplug_models import liger


@pytest.mark.parametrize("installed", [False, True])
def test_a_recipe_is_refused_without_the_package(monkeypatch, installed):
    monkeypatch.setattr(liger, "find_spec", lambda name: installed or None)
    problems = liger.Liger().check()
    assert [problem.what for problem in problems] == ["the package liger_kernel is not installed"] * (not installed)


@pytest.mark.skipif(torch.cuda.is_available() and find_spec("liger_kernel") is not None, reason="the kernels run here")
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

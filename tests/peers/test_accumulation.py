"""In LLM-Neo's code, TRL's GKD and GOLD, ms-swift, torchtune, ModelOpt and Soup the loss depends on the micro-batches.

They average micro-batches with unequal numbers of answer tokens, or divide twice, or not at all.
"""

import numpy as np
import pytest

from neoplug.data import BatchSampler
from neoplug.models import verify

MIX = {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}}


@pytest.mark.parametrize("layout", ["varlen", "flat", pytest.param("padded", marks=pytest.mark.slow)])
def test_the_loss_does_not_depend_on_the_micro_batches(run, tiny_teacher, monkeypatch, layout):
    """Padded rows are put into micro-batches by their length, which has no effect either."""
    monkeypatch.setattr(verify, "LAYOUTS", {layout: verify.LAYOUTS[layout]})
    samplers, original = set(), BatchSampler.micro_batches
    monkeypatch.setattr(
        BatchSampler, "micro_batches", lambda sampler, *at: samplers.add(sampler) or original(sampler, *at)
    )
    curves = []
    for rows, micro_batches in ((4, 1), (1, 4)):
        lines, _ = run(
            name=f"{rows}x{micro_batches}",
            teacher={"model": str(tiny_teacher), "dtype": "float32"},
            loss=MIX,
            train={"max_steps": 2, "per_device_train_batch_size": rows, "gradient_accumulation_steps": micro_batches},
        )
        curves.append([(line["loss"], line["grad_norm"], line["answer_tokens"]) for line in lines])
    by_length = [sampler for sampler in samplers if sampler.lengths is not None]
    assert len(by_length) == (2 if layout == "padded" else 0)
    assert all(len(np.unique(sampler.lengths)) > 4 for sampler in by_length)  # otherwise the split has no effect
    whole, split = curves
    assert whole[0][2] == split[0][2]
    for one, other in zip(whole, split, strict=True):
        assert one == pytest.approx(other, rel=1e-4)

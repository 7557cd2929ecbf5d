"""torchtune's DoRA trains exactly like LoRA; under TRL, QDoRA's magnitude is bfloat16 and never changes."""

import pytest
import torch
from safetensors.torch import load_file


def magnitudes(file):
    found = {name: weight for name, weight in load_file(file).items() if "magnitude" in name}
    assert len(found) == 2 * 7
    return found


@pytest.mark.slow
def test_dora_does_not_train_like_lora(run):
    lora, _ = run("lora", adapter={"lora": {"r": 4}})
    dora, path = run("dora", adapter={"dora": {"r": 4}})
    assert abs(lora[0]["loss"] - dora[0]["loss"]) < 1e-4  # both equal the base at the start
    assert abs(lora[0]["grad_norm"] - dora[0]["grad_norm"]) > 1e-3  # the magnitude has a gradient, too
    assert abs(lora[2]["loss"] - dora[2]["loss"]) > 1e-3
    assert magnitudes(path / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_qdoras_magnitude_is_float32_and_changes(run, tiny_student):
    """Each step is far below the resolution of bfloat16."""
    _, path = run(
        student={"model": str(tiny_student), "dtype": "bfloat16", "load": {"nf4": {}}},
        adapter={"dora": {"r": 4}},
        train={"learning_rate": 1e-5, "save_steps": 1},
    )
    early = magnitudes(path / "checkpoints" / "step-1" / "trainable.safetensors")
    late = magnitudes(path / "checkpoints" / "step-3" / "trainable.safetensors")
    for name, before in early.items():
        after = late[name]
        assert after.dtype == torch.float32
        moved = (after - before).abs()
        assert 0 < moved.max() < 1e-4
        assert (moved > 0).float().mean() > 0.9, name
        assert ((before + moved.max()).bfloat16() == before.bfloat16()).float().mean() > 0.9
    saved = magnitudes(path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}

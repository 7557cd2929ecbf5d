"""In LLM-Neo's code, TRL's GKD and GOLD, ms-swift, torchtune, ModelOpt and Soup the loss depends on a step's split.

They average micro-batches that hold unequal numbers of answer tokens, or divide twice, or not at all.
"""

import pytest

MIX = {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}}


def test_no_split_of_a_step_changes_it(run, tiny_teacher):
    curves = []
    for rows, micro_batches in ((4, 1), (1, 4)):
        lines, _ = run(
            name=f"{rows}x{micro_batches}",
            teacher={"model": str(tiny_teacher), "dtype": "float32"},
            loss=MIX,
            train={"max_steps": 2, "per_device_train_batch_size": rows, "gradient_accumulation_steps": micro_batches},
        )
        curves.append([(line["loss"], line["grad_norm"], line["answer_tokens"]) for line in lines])
    whole, split = curves
    assert whole[0][2] == split[0][2]
    for one, other in zip(whole, split, strict=True):
        assert one == pytest.approx(other, rel=1e-4)

"""Runs on models as their sections want them loaded."""

import pytest


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_teacher_and_student_are_quantised_apart(lab, adapter):
    run = lab.run(
        "run", teacher={"load": {"fp4": {}}}, student={"load": {"int8": {}}}, adapter={adapter: {"r": 4}},
        train={"max_steps": 2},
    )  # fmt: skip
    plain = lab.run("plain", adapter={adapter: {"r": 4}}, train={"max_steps": 2})
    assert run.result["status"] == "completed"
    for quantised, bits in (("before", 8), ("teacher", 4)):
        ours, theirs = (found.result[quantised]["cross_entropy"] for found in (run, plain))
        assert 0 < abs(ours / theirs - 1) < (0.01 if bits == 8 else 0.5)

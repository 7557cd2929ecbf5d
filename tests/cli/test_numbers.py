"""Numbers beyond a range are refused with the range; the largest that are allowed end in a plan or in a message."""

import pytest

BEYOND = ["1.7e308", "1e400", "-1e400", ".nan", ".inf", str(2**63 - 1), str(-(2**63) + 1), "1" * 400]
NUMBERS = [
    *("train.num_train_epochs", "train.learning_rate", "train.warmup_steps", "train.max_grad_norm"),
    *("train.save_steps", "train.per_device_train_batch_size", "data.max_length", "data.max_dropped_rows"),
    *("seed", "adapter.lora.r", "adapter.lora.lora_alpha", "loss.cross_entropy.weight"),
    *("loss.cross_entropy.schedule.linear.end", "optimizer.adamw.weight_decay"),
]


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_beyond_its_range_is_refused_with_its_place(neoplug, recipe, key):
    for number in BEYOND:
        answer = neoplug("plan", recipe, f"{key}={number}")
        assert answer.code == 2, (key, number)
        assert f"override:1:{len(key) + 2}: " in answer.err
        assert any(range_ in answer.err for range_ in ("at most", "at least", "above", "below", "number", "too large"))


@pytest.mark.parametrize(
    "override",
    [
        "train.num_train_epochs=1e6",
        "train.per_device_train_batch_size=1000000000",
        "train.gradient_accumulation_steps=1000000000",
        "train.save_steps=1000000000",
        "train.logging_steps=1000000000",
        "train.learning_rate=1e12",
        "train.warmup_steps=1000000000",
        "train.max_grad_norm=1e12",
        "data.max_length=1000000000",
        "data.held_out=1000000000",
        "data.max_rows=1000000000",
        "adapter.lora.r=1000000000",
        "adapter.lora.lora_alpha=1000000000",
        "adapter={lokr: {r: 1000000000}}",
        "adapter={moslora: {r: 1000000000}}",
        "loss.cross_entropy.weight=1e12",
        "evaluate.per_device_eval_batch_size=1000000000",
        "optimizer={adamw: {eps: 1e12}}",
    ],
)
def test_the_largest_number_of_a_range_is_planned_or_refused(neoplug, recipe, override):
    answer = neoplug("plan", recipe, override)
    assert answer.code in (0, 2), answer.err


def test_as_many_epochs_as_allowed_are_planned(neoplug, recipe):
    assert "epochs" in neoplug("plan", recipe, "train.num_train_epochs=1e6").out

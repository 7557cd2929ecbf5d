"""axolotl's LoRA+ at ratio 1 is not LoRA: it uses another optimizer and another weight decay."""

import pytest
from safetensors.torch import load_file

CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")


def curve(lines):
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_ratio_one_is_the_plain_adapter_bit_for_bit(run, adapter):
    options = {"r": 4, "lora_dropout": 0.1}
    decay = {"adamw": {"weight_decay": 0.1}}
    plain, plain_path = run("plain", adapter={adapter: options}, optimizer=decay)
    ends = load_file(plain_path / "adapter" / "adapter_model.safetensors")
    for ratio in (1, 16):
        both = {adapter: options, "loraplus": {"lr_ratio": ratio}}
        lines, path = run(f"ratio-{ratio}", adapter=both, optimizer=decay)
        found = load_file(path / "adapter" / "adapter_model.safetensors")
        assert found.keys() == ends.keys()
        same = all((found[name] == ends[name]).all() for name in ends)
        assert same == (ratio == 1)
        assert (curve(lines) == curve(plain)) == (ratio == 1)

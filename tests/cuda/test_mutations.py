"""Faults of devices and synchronisation, planted into neoplug: a whole run on the pretended GPU finds all but one.

Each fault is a plausible line of neoplug, and each would pass all tests on a CPU. The one that is not found rounds: the
guard computes with the CPU's kernels, and says nothing of a GPU's accuracy.
"""

from typing import NamedTuple

import pytest

from tests.cuda.results import computed

PACKED = {"data": {"packing": True}}
BFLOAT16 = {"teacher": {"dtype": "bfloat16"}, "student": {"dtype": "bfloat16"}, **PACKED}
HEAD = {**BFLOAT16, "adapter": {"lora": {"r": 4, "target_modules": ["q_proj", "lm_head"]}}}
KINDS = {"chat": {}, "packed": PACKED, "bfloat16": BFLOAT16, "adapted head": HEAD}


class Fault(NamedTuple):
    """A line of a function and what takes its place; `found` is what shows it, and part of that message."""

    function: str
    old: str
    new: str
    found: tuple[str, str] | None
    recipe: dict = {}  # noqa: RUF012 (it is not changed)


FAULTS = {
    "the batch stays on the host": Fault(
        "neoplug.training.loop:distil", "batch = batch.to(world.device)", "pass",
        ("error", "at least two devices, cuda:0 and cpu"),
    ),
    "losses are collected on the host": Fault(
        "neoplug.training.objective:_Objective.forward",
        "values = torch.zeros(len(losses), len(hidden), device=hidden.device)",
        "values = torch.zeros(len(losses), len(hidden))",
        ("error", "at least two devices, cuda:0 and cpu"),
    ),
    "the gradient norm is read in each step": Fault(
        "neoplug.training.loop:distil", 'extras["grad_norm"] = nn.utils.clip_grad_norm_',
        'extras["clipped"] = nn.utils.get_total_norm([p.grad for p in parameters]).item() > 1; '
        'extras["grad_norm"] = nn.utils.clip_grad_norm_',
        ("wait", "_local_scalar_dense"),
    ),
    "copies to the device wait": Fault(
        "neoplug.data.batch:to_device", "tensor.to(device, non_blocking=torch.device(device).type != \"cpu\")",
        "tensor.to(device)",
        ("wait", "neoplug/data/batch.py"),
    ),
    "answer tokens are selected by a mask": Fault(
        "neoplug.training.module:StudentWithObjective.score", "batch.labels, progress",
        "batch.labels[batch.labels >= 0], progress",
        ("wait", "index by a mask"),
    ),
    "a signal to stop is asked for on the device": Fault(
        "neoplug.runs.trainer:Trainer.stop_requested", "asked = int(self.stop.signal is not None)",
        "asked = torch.tensor(int(self.stop.signal is not None), device=self.world.device)",
        ("wait", "stop_requested"),
    ),
    "metrics are read before they have arrived": Fault(
        "neoplug.training.metrics:Metrics.flush", "torch.stack(scalars).tolist()",
        'torch.stack(scalars).to("cpu", non_blocking=True).tolist()',
        ("race", "neoplug/training/metrics.py"),
    ),
    "attention by document is for a CPU only": Fault(
        "neoplug.models.verify:_isolating_layout", 'model.device.type not in ("cpu", "cuda")',
        'model.device.type != "cpu"',
        ("dense mask", "sdpa_attention_forward"), PACKED,
    ),
    "a GPU leaves out the last row of a block": Fault(
        "neoplug.training.objective:tiles", "min(start + size, len(block))",
        "min(start + size, len(block)) - block.is_cuda",
        ("values", "loss"),
    ),
    "an adapted head adds its product twice on a GPU": Fault(
        "neoplug.models.split_products:SplitLinear.forward", "output = multiply(", "output = 2 * multiply(",
        ("error", "cannot compute the student's logits"), HEAD,
    ),
    "logits are rounded to 16 bits on a GPU": Fault(
        "neoplug.models.head:FrozenLinear.forward",
        "torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=torch.float32)",
        "torch.mm(hidden.to(weight.dtype), weight.t()).float()",
        None, BFLOAT16,
    ),
}  # fmt: skip
QUICK = ("the batch stays on the host", "copies to the device wait", "attention by document is for a CPU only")


@pytest.fixture(scope="module")
def on_cpu(lab):
    """Return a function, recipe -> what a run of it on the CPU computes."""
    known = {}

    def run(recipe):
        if recipe.name not in known:
            known[recipe.name] = computed(lab.run(f"{recipe.stem}, CPU", recipe))
        return known[recipe.name]

    return run


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS])
def test_a_run_on_the_device_finds_a_fault(driver, lab, on_cpu, name):
    fault = FAULTS[name]
    kind = next(name for name, sections in KINDS.items() if sections == fault.recipe)
    recipe = lab.recipe(kind, **fault.recipe, train={"max_steps": 2})
    outcome = driver.run(recipe, lab.folder / name, {"function": fault.function, "old": fault.old, "new": fault.new})
    found = []
    if outcome.error:
        found.append(("error", outcome.error))
    found += [("wait", wait) for wait in outcome.own_waits]
    found += [("race", event.caller) for event in outcome.events if "race" in event.what]
    found += [("dense mask", caller) for caller in outcome.dense_masks]
    if not found:
        tolerance = 2e-2 if fault.recipe is BFLOAT16 else 1e-6
        expected, values = on_cpu(recipe), computed(lab.at(name))
        found += [("values", key) for key, value in expected.items() if values[key] != pytest.approx(value, tolerance)]
    if fault.found is None:
        assert found == []
    else:
        kind, message = fault.found
        assert any(each == kind and message in text for each, text in found), found

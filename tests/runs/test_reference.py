"""The section `reference` is stored with a run and shown by its card, and changes nothing of the run."""

import math

import pytest
from scipy import stats

from neoplug.runs.directory import RunDir

CLAIM = {
    "claim": "Distillation | beats\n<b>training</b> on text alone.",
    "source": "arXiv 2411.06839",
    "table": "Table 2",
    "targets": {
        "forward_kl": {"mean": 1.25, "sd": 0.125, "n": 5},
        "perplexity": {"value": 21.5, "tolerance": 0.5},
        "probes.calibration.ece": {"value": 0.75, "tolerance": 0.01},
        "probes.calibration.piqa": {"value": 0.75, "tolerance": 0.01},
    },
    "left_open": ["temperature"],
    "adapted": True,
}


@pytest.fixture(scope="module")
def claimed(module_lab):
    short = {"train": {"max_steps": 2}, "probes": {"calibration": {}}}
    return module_lab.run("claimed", reference=CLAIM, **short), module_lab.run("plain", **short)


def test_a_reference_changes_no_number_and_no_key(claimed):
    with_reference, plain = claimed
    assert with_reference.facts == plain.facts
    assert with_reference.adapter_bytes == plain.adapter_bytes
    locks = [{key: value for key, value in run.lock.items() if key != "recipe"} for run in claimed]
    assert locks[0] == locks[1]


def test_recipe_and_lock_of_a_run_have_the_reference(claimed):
    run, plain = claimed
    recipe = RunDir.open(run.path).resolved
    assert run.lock["recipe"] == recipe
    assert recipe["reference"] == CLAIM
    assert "reference" not in plain.lock["recipe"]


def test_the_card_sets_what_was_measured_next_to_the_targets(claimed):
    run, plain = claimed
    text = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Reference\n\n")[2].partition("\n## ")[0].splitlines()
    after, ece = run.result["after"], run.result["after"]["probes"]["calibration"]["ece"]
    half = stats.t.ppf(0.995, 4) * 0.125 * math.sqrt(1.2)
    low, high = 1.25 - half, 1.25 + half
    side = "inside" if low <= after["forward_kl"] <= high else "outside"
    forward_kl = f"{after['forward_kl']:.6g}, {side} {low:.6g} to {high:.6g}"
    assert section == [
        "Distillation | beats <b>training</b> on text alone. (arXiv 2411.06839, Table 2; adapted to distillation)",
        "",
        f"- `forward_kl`: mean 1.25, sd 0.125 over 5 seeds; this run: {forward_kl}",
        f"- `perplexity`: 21.5 ± 0.5; this run: {after['perplexity']:.6g}, outside 21 to 22",
        f"- `probes.calibration.ece`: 0.75 ± 0.01; this run: {ece:.6g}, outside 0.74 to 0.76",
        "- `probes.calibration.piqa`: 0.75 ± 0.01; this run: not measured",
        "- not stated by the source: temperature",
    ]
    assert "## Reference" not in (plain.path / "adapter" / "README.md").read_text(encoding="utf-8")

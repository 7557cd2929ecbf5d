"""Runs whose models are sharded over ranks, against the same runs in one process."""

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import start_runs_on_ranks
from tests.runs.conftest import Lab

pytestmark = pytest.mark.slow

BASE = {
    "optimizer": {"sgd": {"momentum": 0.5}},
    "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0, "calibrate": "reverse_kl"}},
    "data": {"max_length": 160, "packing": False, "held_out": 3},
}
TRAIN = {"max_steps": 5, "max_grad_norm": 0.5, "save_steps": 2, "log_gradient_norms": True}


@pytest.mark.parametrize("shard,adapter", [("base", {"lora": {"r": 4}}), ("full", {"full": {}})])
def test_dev(lab, shard, adapter):
    two = lab.recipe("two", train=TRAIN | {"shard": shard}, adapter=adapter, **BASE)
    ranks = [rank.end() for rank in start_runs_on_ranks(2, [(two, lab.folder / "two", False)])]
    print(ranks[0].err, ranks[1].err)
    run = lab.at("two")
    one = lab.run("one", train=TRAIN | {"gradient_accumulation_steps": 4}, adapter=adapter, **BASE)
    for ours, theirs in zip(run.lines, one.lines, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours.get("gradient_norms", {}) == pytest.approx(theirs.get("gradient_norms", {}), rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    print((run.path/"log.txt").read_text() if (run.path/"log.txt").exists() else list(run.path.iterdir()))

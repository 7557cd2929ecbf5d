"""Weights of losses in complete runs: scheduled, calibrated to another loss's gradient, and measured."""

import json
from math import cos, pi

import pytest

from neoplug.errors import RunError

ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0}
NOTHING = """
@dataclass(eq=False)
class Nothing:
    @hookimpl
    def token_loss(self, student):
        return 0 * student.sum(-1)
"""


def without(run, *keys):
    return [{key: value for key, value in line.items() if key not in keys} for line in run.facts]


@pytest.mark.slow
def test_a_schedule_scales_the_gradient_and_the_loss(lab):
    mix = {"cross_entropy": {"weight": 0.5, "schedule": "cosine"}, "forward_kl": {"weight": 2.0}}
    run = lab.run("scheduled", loss=mix, train={"max_steps": 4})
    for step, line in enumerate(run.lines):
        expected = {"cross_entropy": 0.25 * (1 + cos(pi * step / 3)), "forward_kl": 2.0}
        assert line["weights"] == pytest.approx(expected, abs=1e-12)
        assert line["loss"] == pytest.approx(sum(expected[name] * line["losses"][name] for name in expected))
    halved = {"cross_entropy": {"schedule": {"step": {"at": 0.0, "start": 9.0, "end": 0.5}}}}
    plain = lab.run("plain", loss={"cross_entropy": {"weight": 0.5}}, train={"max_steps": 2})
    stepped = lab.run("stepped", loss=halved, train={"max_steps": 2})
    assert without(stepped, "weights") == plain.facts
    assert stepped.adapter_bytes == plain.adapter_bytes


@pytest.mark.slow
def test_a_calibrated_loss_has_the_gradient_norm_of_its_reference(lab):
    """JSD near both ends of beta, where its gradients differ most; the reference is `grad_norm` of a separate run."""
    kl = lab.run("kl", loss={"forward_kl": {}}, train=ONE_STEP | {"log_gradient_norms": True})
    (reference,) = kl.lines
    assert reference["gradient_norms"]["forward_kl"] == pytest.approx(reference["grad_norm"], rel=1e-5)
    for beta in (0.1, 0.9):
        jsd = {"beta": beta, "weight": 3.0, "calibrate": "forward_kl"}
        run = lab.run(f"jsd{beta}", loss={"jsd": jsd}, train=ONE_STEP, token_weights={})
        (line,) = run.lines
        assert line["grad_norm"] == pytest.approx(3 * reference["grad_norm"], rel=1e-4)
        assert run.result["weights"] == line["weights"]
        assert line["weights"]["jsd"] > 5
        assert run.lock["plugins"]["calibrate.forward_kl"]["package"] == "neoplug"


DROPOUT = {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_measuring_gradient_norms_changes_nothing(lab, checkpointing):
    """Dropout, a loss with state, token weights, treatments: bit-identical with and without the measurement."""
    same = {
        "adapter": DROPOUT, "loss": {"cross_entropy": {"weight": 0.5}, "taid": {}}, "token_weights": {"position": {}},
        "treatments": {"label_noise": {"probability": 0.3}},
    }  # fmt: skip
    train = {"max_steps": 3, "logging_steps": 2, "gradient_checkpointing": checkpointing}
    plain = lab.run("plain", train=train, **same)
    run = lab.run("measured", train=train | {"log_gradient_norms": True}, **same)
    assert ["gradient_norms" in line for line in run.lines] == [False, True, True]
    assert without(run, "gradient_norms") == plain.facts
    assert run.adapter_bytes == plain.adapter_bytes
    norms = run.lines[-1]["gradient_norms"]
    assert list(norms) == ["cross_entropy", "taid"]
    total = run.lines[-1]["grad_norm"]
    assert abs(0.5 * norms["cross_entropy"] - norms["taid"]) < total < 0.5 * norms["cross_entropy"] + norms["taid"]


def test_a_loss_cannot_be_calibrated_to_a_loss_without_a_gradient(lab):
    lab.plugin("nothing", NOTHING)
    with pytest.raises(RunError, match=r"the gradient of `\./nothing\.py:Nothing` is 0"):
        lab.run("run", loss={"cross_entropy": {"calibrate": "./nothing.py:Nothing"}}, train=ONE_STEP)
    assert json.loads((lab.folder / "run" / "result.json").read_text())["status"] == "failed"

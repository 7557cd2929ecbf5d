"""Every family plans, runs, resumes and exports, packed and in padded rows, and its first step is right."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import neoplug
from neoplug import recipe
from neoplug.export.merge import export
from neoplug.models import verify
from neoplug.runs.plan import plan
from neoplug.testing.families import FAMILIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),  # raised within peft
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),  # peft's own patterns
]
NOT_ISOLATED = {"bloom": "padded", "falcon_h1": "padded"}  # documents are not isolated in attention
IDS = torch.arange(3, 43).view(2, 20)


def load(folder):
    """Return a model in float64, with experts computed one by one: their faster kernels do not support float64."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def finish(lab, file, kept):
    """Plan, run, interrupt and resume; compare the results of both; return the log and the first line of metrics."""
    run, planned = lab.path / "run", plan(recipe.load(file), quick=True)
    result = neoplug.run(file, output=run)
    lines, weights = lab.lines(), (run / kept).read_bytes()
    lab.interrupt()
    neoplug.run(file, output=run, resume=True)
    assert lab.lines() == lines
    assert (run / kept).read_bytes() == weights
    assert planned["parameters"]["trainable"] == result["trainable_parameters"]
    return (run / "log.txt").read_text(encoding="utf-8"), lines[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_with_an_adapter(lab, family):
    log, line = finish(lab, lab.recipe(), "adapter/adapter_model.safetensors")
    assert f"student: layout {NOT_ISOLATED.get(family, 'varlen')}, " in log
    cross_entropy, divergence, _ = lab.expected()
    assert line["losses"]["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert line["losses"]["forward_kl"] == pytest.approx(divergence.item(), rel=1e-5)

    ours = logits(load(export(lab.path / "run", lab.path / "exported")))
    base = load(lab.student)
    unadapted = logits(base)
    theirs = logits(PeftModel.from_pretrained(base, lab.path / "run" / "adapter").double().eval())
    assert (theirs - unadapted).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_teachers_stored_states(lab, family, monkeypatch):
    monkeypatch.setenv("NEOPLUG_HOME", str(lab.path / "home"))
    teacher = {"model": str(lab.teacher), "dtype": "float32", "cache": {"states": {"dtype": "float32"}}}
    train = {"max_steps": 1, "per_device_train_batch_size": 2}
    result = neoplug.run(lab.recipe(teacher=teacher, train=train), output=lab.path / "run")
    _, divergence, _ = lab.expected()
    assert lab.lines()[0]["losses"]["forward_kl"] == pytest.approx(divergence.item(), rel=1e-5)
    assert result["teacher"]["cross_entropy"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_and_trained_in_full(lab, monkeypatch):
    """The gradient norm includes every weight: tied heads and embeddings, biases, experts."""
    monkeypatch.setattr(verify, "LAYOUTS", {"padded": verify.LAYOUTS["padded"]})
    data = {"source": str(lab.chat), "held_out": 2, "max_length": 96, "packing": False}
    _, line = finish(lab, lab.recipe(data=data, adapter={"full": {}}), "model/model.safetensors")
    cross_entropy, divergence, student = lab.expected()
    (0.7 * cross_entropy + 0.3 * divergence).backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    assert line["losses"]["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert line["losses"]["forward_kl"] == pytest.approx(divergence.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)

    ours = logits(load(export(lab.path / "run", lab.path / "exported")))
    trained = load_file(lab.path / "run" / "checkpoints" / "step-2" / "trainable.safetensors")
    student.load_state_dict(trained, strict=False)
    student.tie_weights()
    torch.testing.assert_close(ours, logits(student), rtol=1e-4, atol=1e-5)

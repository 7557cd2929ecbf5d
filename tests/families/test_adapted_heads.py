"""Adapters on heads and embeddings, tied or resized; and one family through the command line."""

import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import neoplug
from neoplug.cli import main
from neoplug.export.merge import export
from neoplug.testing.families import make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),  # raised within peft
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),
]
IDS = torch.arange(3, 43).view(2, 20)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def exported_equals_adapted(lab):
    """Assert that the exported model equals base and adapter, and that the adapter has an effect."""
    ours = load(export(lab.path / "run", lab.path / "exported"))
    base = load(lab.student)
    unadapted = logits(base)
    adapted = PeftModel.from_pretrained(base, lab.path / "run" / "adapter").double().eval()
    theirs = logits(adapted)
    assert (theirs - unadapted).abs().max() > 0.05
    torch.testing.assert_close(logits(ours), theirs, rtol=1e-4, atol=1e-5)
    return ours


def first_step_is_right(lab):
    cross_entropy, divergence, _ = lab.expected()
    line = lab.lines()[0]
    assert line["losses"]["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert line["losses"]["forward_kl"] == pytest.approx(divergence.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "adapter", "targets"),
    [
        ("gpt2", "lora", ["lm_head"]),
        ("gpt2", "lora", ["c_attn", "wte"]),
        ("gemma2", "dora", ["q_proj", "lm_head"]),
        ("cohere", "lora", ["embed_tokens", "lm_head"]),
        ("llama", "dora", ["embed_tokens", "lm_head"]),
        ("gpt2", "dora", "all-linear"),
        ("phi3", "dora", "all-linear"),
    ],
)
def test_adapters_on_heads_and_embeddings(lab, adapter, targets):
    """Also with tied weights: only the head is adapted, so the change must not be merged into the embeddings."""
    tied = load(lab.student).config.tie_word_embeddings
    file = lab.recipe(adapter={adapter: {"r": 4, "target_modules": targets}})
    neoplug.run(file, output=lab.path / "run")
    first_step_is_right(lab)
    exported = exported_equals_adapted(lab)
    shared = exported.get_input_embeddings().weight is exported.get_output_embeddings().weight
    assert shared == (tied and targets == "all-linear")


@pytest.mark.parametrize(
    ("family", "modules"),
    [("bloom", ["word_embeddings"]), ("gpt2", ["lm_head"]), ("gpt2", ["wte"]), ("olmo2", ["embed_tokens", "lm_head"])],
)
def test_modules_trained_in_full(lab, modules):
    """Tied modules by either name stay tied, in the run and in the exported model."""
    base = load(lab.student)
    neoplug.run(lab.recipe(adapter={"lora": {"r": 4, "modules_to_save": modules}}), output=lab.path / "run")
    first_step_is_right(lab)
    exported = exported_equals_adapted(lab)
    head, embeddings = exported.get_output_embeddings().weight, exported.get_input_embeddings().weight
    assert (head is embeddings) == base.config.tie_word_embeddings
    for weight, before in ((head, base.get_output_embeddings()), (embeddings, base.get_input_embeddings())):
        assert (weight - before.weight).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "opt"])
def test_resized_embeddings(lab, family):
    """More rows than the tokenizer has tokens, trained and merged; the teacher has its own number of rows."""
    resized = AutoModelForCausalLM.from_pretrained(lab.student)
    resized.resize_token_embeddings(272, mean_resizing=False)
    student = lab.path / "resized"
    make(family, student, seed=7)
    resized.save_pretrained(student)
    lab = type(lab)(lab.path, student, lab.teacher, lab.chat)
    neoplug.run(lab.recipe(), output=lab.path / "run")
    first_step_is_right(lab)
    assert exported_equals_adapted(lab).get_output_embeddings().weight.shape[0] == 272


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_through_the_command_line(lab, family, monkeypatch, capsys):
    file, run = str(lab.recipe()), str(lab.path / "run")

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["neoplug", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert "trainable" in command("plan", file)
    command("run", file, "--output", run)
    lines = lab.lines()
    lab.interrupt()
    command("run", file, "--output", run, "--resume")
    assert lab.lines() == lines
    command("export", run, str(lab.path / "by-command"))
    first_step_is_right(lab)
    assert torch.equal(logits(exported_equals_adapted(lab)), logits(load(lab.path / "by-command")))

"""A teacher with its own chat template in complete runs, against separate forward passes of both models."""

import copy
import json

import pytest
import torch

from neoplug.models import verify

TEMPLATE = (
    "<|teacher|>You are a teacher, and wise.\n{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}"
    "{{ '<|endoftext|>' if m['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)


@pytest.mark.slow
def test_an_own_template_equal_to_the_students_gives_the_same_run_bit_for_bit(lab):
    lab.run("plain", train={"max_steps": 2})
    lab.run("own", teacher={"chat_template": "own"}, train={"max_steps": 2})
    plain, own = lab.at("plain"), lab.at("own")
    assert own.adapter_bytes == plain.adapter_bytes
    assert own.facts == plain.facts
    assert own.result["teacher"] == plain.result["teacher"]


@pytest.fixture(scope="module")
def teacher_with_extra_token(tmp_path_factory, tiny_tokenizer, tiny_teacher):
    """Return the folder of a teacher with a token that the student does not have, for use in a template."""
    from transformers import AutoModelForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("teacher_with_extra_token"), copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|teacher|>"]})
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    teacher.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(evaluation_chat, tiny_student, teacher_with_extra_token):
    """Return the means over answer tokens from separate forward passes, summed in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = (tiny_student, teacher_with_extra_token)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in folders]
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in folders]
    kl, entropy = [], []
    for line in evaluation_chat.read_text(encoding="utf-8").splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        labels = tokenizers[0](answer + "<|im_end|>")["input_ids"]
        prompts = (
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            f"<|teacher|>You are a teacher, and wise.\nuser:\n{question}\nassistant:\n",
        )
        log_q, log_p = (
            predictions(model, tokenizer(prompt)["input_ids"], labels, len(tokenizers[0]))
            for model, tokenizer, prompt in zip(models, tokenizers, prompts, strict=True)
        )
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        entropy.append(-log_p[torch.arange(len(labels)), labels])
    return {"forward_kl": float(torch.cat(kl).mean()), "cross_entropy": float(torch.cat(entropy).mean())}


@torch.no_grad()
def predictions(model, prompt, labels, vocabulary):
    """Return the float64 log-probabilities [n, V] over the shared vocabulary of the labels after the prompt."""
    logits = model(torch.tensor([[*prompt, *labels]])).logits[0]
    return logits[len(prompt) - 1 : -1, :vocabulary].double().log_softmax(-1)


@pytest.mark.parametrize(
    ("layout", "packing"), [("varlen", True), ("flat", True), pytest.param("padded", False, marks=pytest.mark.slow)]
)
def test_evaluation_and_first_step_equal_separate_forward_passes(
    lab, monkeypatch, evaluation_chat, expected, teacher_with_extra_token, layout, packing
):
    monkeypatch.setattr(verify, "LAYOUTS", {layout: verify.LAYOUTS[layout]})
    data = {"source": str(evaluation_chat), "eval_source": str(evaluation_chat), "held_out": None, "packing": packing}
    train = {"max_steps": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    lab.run("run", teacher={"model": str(teacher_with_extra_token), "chat_template": TEMPLATE}, data=data, train=train)
    run = lab.at("run")
    assert run.result["teacher"]["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-5)
    assert run.result["before"]["forward_kl"] == pytest.approx(expected["forward_kl"], rel=1e-4)
    assert run.lines[0]["losses"]["forward_kl"] == pytest.approx(expected["forward_kl"], rel=1e-4)

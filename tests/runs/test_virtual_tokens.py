"""Adapters that put virtual tokens before each document, in complete runs, against whole logits by plain peft."""

import logging
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from neoplug import recipe
from neoplug.data import load_corpus
from neoplug.errors import UsageError
from neoplug.export.merge import export
from neoplug.runs.progress import Silent
from neoplug.runs.remeasure import recipe_for_target, remeasure
from neoplug.runs.steps import make_sampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),  # raised within peft
]
NAMES = ["p_tuning", "prefix_tuning", "prompt_tuning"]
TOKENS = 5
UNMOVED = {
    "max_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "learning_rate": 1e-30,
}  # saves the start


@pytest.fixture(autouse=True)
def exactly(lab):
    """Make both models compute in float32 on every CPU."""
    for role in ("teacher", "student"):
        lab.base[role]["dtype"] = "float32"


def answers(student, adapter, teacher, documents, dtype=torch.float64):
    """Return cross-entropy and forward KL, means over answer tokens: whole logits, a document at a time."""
    base = AutoModelForCausalLM.from_pretrained(student, dtype=dtype)
    ours = PeftModel.from_pretrained(base, adapter).to(dtype).eval()
    theirs = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype).eval()
    sums, count = torch.zeros(2, dtype=dtype), 0
    for document in documents:
        ids, scored = torch.from_numpy(document.input_ids)[None], torch.from_numpy(document.loss_mask[1:])
        with torch.no_grad():
            log_q, log_p = (
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                .logits[0, -ids.shape[1] : -1][scored].log_softmax(-1)
                for model in (ours, theirs)
            )  # fmt: skip
        sums[0] -= log_q.gather(-1, ids[0, 1:][scored, None]).sum()
        sums[1] += (log_p.exp() * (log_p - log_q)).sum()
        count += int(scored.sum())
    return (sums / count).tolist()


def read(lab, run):
    """Return a run's corpus, and the documents of its first step."""
    checked = recipe.load(lab.folder / f"{run}-recipe.yaml")
    corpus = load_corpus(checked.recipe.data, AutoTokenizer.from_pretrained(checked.recipe.student.model))
    rows = [row for rows in make_sampler(checked, corpus, 1).micro_batches(0, 0) for row in rows]
    return corpus, [document for row in rows for document in corpus.rows[row]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packing", [False, True])
def test_losses_are_those_of_plain_peft(lab, name, packing, tiny_student, tiny_teacher, caplog):
    """Documents of unequal length, several in a row, several micro-batches a step."""
    caplog.set_level(logging.INFO, "neoplug")
    run = lab.run("run", adapter={name: {"num_virtual_tokens": TOKENS}}, data={"packing": packing}, train=UNMOVED)
    assert f"student: layout padded, each document has its own row; not in one row, since the {TOKENS} virtual" in (
        caplog.text
    )
    corpus, documents = read(lab, "run")
    assert len(documents) > 4 if packing else len(documents) == 4
    cross_entropy, divergence = answers(tiny_student, run.path / "adapter", tiny_teacher, documents)
    assert run.lines[0]["losses"]["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert run.lines[0]["losses"]["forward_kl"] == pytest.approx(divergence, rel=1e-4)
    cross_entropy, divergence = answers(tiny_student, run.path / "adapter", tiny_teacher, corpus.held_out)
    assert run.result["after"]["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert run.result["after"]["forward_kl"] == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_saved_evaluated_sampled_and_resumed(lab, name, tiny_student, tiny_teacher):
    whole = lab.run("run", adapter={name: {"num_virtual_tokens": TOKENS}}, train={"learning_rate": 0.05})
    lines, result = whole.lines, whole.result
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert result["total_parameters"] > result["trainable_parameters"] > 0
    corpus, _ = read(lab, "run")
    after = answers(tiny_student, whole.path / "adapter", tiny_teacher, corpus.held_out)
    assert [result["after"][key] for key in ("cross_entropy", "forward_kl")] == pytest.approx(after, rel=1e-3)
    again = remeasure(str(whole.path), recipe_for_target(str(whole.path), lab.folder / "run-recipe.yaml", []), Silent())
    assert again["student"]["cross_entropy"] == pytest.approx(after[0], rel=1e-3)
    assert result["sample"]["after"] == greedy(tiny_student, whole, result["sample"]["prompt"])
    with pytest.raises(UsageError, match=f"a `{name}` adapter cannot be merged\nwhy: its virtual tokens"):
        export(whole.path, lab.folder / "out")
    facts, adapter = whole.facts, whole.adapter_bytes
    (whole.path / "result.json").unlink()
    for step in (4, 6):
        shutil.rmtree(whole.path / "checkpoints" / f"step-{step}")
    resumed = lab.run("run", lab.folder / "run-recipe.yaml", resume=True)
    assert resumed.facts == facts
    assert resumed.adapter_bytes == adapter


def greedy(student, run, prompt, tokens=32):
    """Return plain peft's continuation of a text, token by token and without a cache."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student), run.path / "adapter").eval()
    began = first_prompt(run, tokenizer)
    assert tokenizer.decode(began, skip_special_tokens=True) == prompt
    ids = torch.tensor([began])
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, len(began) :], skip_special_tokens=True)


def first_prompt(run, tokenizer):
    checked = recipe.load(run.path / "recipe.yaml")
    document = load_corpus(checked.recipe.data, tokenizer).held_out[0]
    return document.input_ids[: int(document.loss_mask.nonzero()[0][0])].tolist()


def test_checkpointing_changes_nothing_or_is_refused(lab):
    plain = lab.run("plain", adapter={"prompt_tuning": {}}, train={"max_steps": 2})
    less = lab.run("less", adapter={"prompt_tuning": {}}, train={"max_steps": 2, "gradient_checkpointing": True})
    assert [line["loss"] for line in less.lines] == pytest.approx([line["loss"] for line in plain.lines], rel=1e-6)
    with pytest.raises(UsageError, match="`prefix_tuning` cannot train with gradient checkpointing") as caught:
        lab.run("refused", adapter={"prefix_tuning": {}}, train={"gradient_checkpointing": True})
    assert "gradient_checkpointing" in str(caught.value)
    assert not (lab.folder / "refused").exists()


@pytest.mark.parametrize("name", NAMES)
def test_on_4_bits_in_half_precision_the_loss_falls(lab, name):
    options = {"load": {"nf4": {}}, "dtype": "bfloat16"}
    run = lab.run("run", student=options, adapter={name: {}}, train={"learning_rate": 0.05})
    assert run.lines[-1]["loss"] < run.lines[0]["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_may_have_virtual_tokens_too(lab, name, tiny_teacher):
    """The teacher's cross-entropy on held-out text is that of the student whose adapter it loads."""
    first = lab.run("first", student={"model": str(tiny_teacher)}, adapter={name: {}}, train={"max_steps": 2})
    taught = lab.run("taught", teacher={"adapter_path": str(first.path / "adapter")}, train=UNMOVED)
    assert taught.result["teacher"]["cross_entropy"] == pytest.approx(first.result["after"]["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_training_continues_from_a_stored_adapter(lab, name):
    first = lab.run("first", adapter={name: {}}, train={"max_steps": 2})
    second = lab.run("second", student={"adapter_path": str(first.path / "adapter")}, adapter={name: {}})
    assert second.result["before"]["cross_entropy"] == pytest.approx(first.result["after"]["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize(("name", "options"), [("p_tuning", {}), ("prefix_tuning", {"prefix_projection": True})])
def test_virtual_tokens_computed_by_a_network_cannot_be_trained_further(lab, name, options):
    first = lab.run("first", adapter={name: options}, train={"max_steps": 1})
    with pytest.raises(UsageError, match="not the network that computed them"):
        lab.run("second", student={"adapter_path": str(first.path / "adapter")}, adapter={name: options})

"""Virtual tokens before documents of several families: the first losses are those of whole logits by plain peft."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import neoplug
from neoplug import recipe
from neoplug.data import load_corpus
from neoplug.errors import UsageError
from neoplug.runs.steps import make_sampler
from neoplug.testing.families import make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),  # raised within peft
]
UNMOVED = {"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-30, "per_device_train_batch_size": 4}
# Learned positions, positions from the mask, no positions; scaled embeddings, windows, a state, experts.
PAIRS = [
    ("bloom", "prefix_tuning"), ("falcon_h1", "prompt_tuning"), ("gemma2", "prefix_tuning"),
    ("gemma2", "prompt_tuning"), ("gpt2", "p_tuning"), ("granite", "prompt_tuning"), ("mistral", "prefix_tuning"),
    ("opt", "prefix_tuning"), ("opt", "prompt_tuning"), ("qwen3_moe", "prefix_tuning"),
]  # fmt: skip


def of_peft(lab, student):
    """Return the first step's cross-entropy: whole logits of plain peft in float64, document by document."""
    base = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64, experts_implementation="eager")
    model = PeftModel.from_pretrained(base, lab.path / "run" / "adapter").double().eval()
    checked, tokenizer = recipe.load(lab.path / "recipe.yaml"), AutoTokenizer.from_pretrained(student)
    corpus = load_corpus(checked.recipe.data, tokenizer)
    rows = [row for rows in make_sampler(checked, corpus, 1).micro_batches(0, 0) for row in rows]
    total, count = 0.0, 0
    for document in (document for row in rows for document in corpus.rows[row]):
        ids, scored = torch.from_numpy(document.input_ids)[None], torch.from_numpy(document.loss_mask[1:])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        log_q = logits[0, -ids.shape[1] : -1][scored][:, : len(tokenizer)].log_softmax(-1)
        total -= log_q.gather(-1, ids[0, 1:][scored, None]).sum().item()
        count += int(scored.sum())
    return total / count


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_losses_are_those_of_plain_peft(lab, family, name):
    neoplug.run(lab.recipe(adapter={name: {}}, train=UNMOVED), output=lab.path / "run")
    assert lab.lines()[0]["losses"]["cross_entropy"] == pytest.approx(of_peft(lab, lab.student), rel=1e-5)


@pytest.mark.parametrize("family", ["opt"])
def test_documents_need_positions_after_virtual_tokens(lab, family, tmp_path):
    student = make(family, tmp_path / "student", max_position_embeddings=96)
    longest = {"source": str(lab.chat), "held_out": 2, "max_length": 96}
    file = lab.recipe(
        student={"model": str(student)}, data=longest, adapter={"prompt_tuning": {"num_virtual_tokens": 90}}
    )
    with pytest.raises(UsageError, match="and 90 virtual ones before it, but the student was made for 96") as caught:
        neoplug.run(file, output=lab.path / "run")
    assert "max_length to 6 or less" in str(caught.value)


@pytest.mark.parametrize("family", ["falcon_h1"])
def test_a_prefix_for_a_state_space_model_is_refused_before_loading(lab, family):
    with pytest.raises(UsageError, match="layers keep a state in addition to keys and values"):
        neoplug.run(lab.recipe(adapter={"prefix_tuning": {}}), output=lab.path / "run")
    assert not (lab.path / "run").exists()

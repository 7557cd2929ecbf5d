"""LLM-Neo's mix in the first step of a run, against whole logits in float64: plain PyTorch, a document at a time."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from neoplug.models import verify

# raised within peft
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

SHARE = 0.3  # weight of the divergence; cross-entropy has 1 minus it


@pytest.fixture(scope="module")
def wide_student(tmp_path_factory, tiny_tokenizer, tiny_llama_folder):
    """Return a student whose head has 13 rows more than the tokenizer has tokens, as in Qwen."""
    return tiny_llama_folder(tmp_path_factory.mktemp("wide"), vocab=len(tiny_tokenizer) + 13, seed=3)


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory, tiny_tokenizer, tiny_llama_folder):
    folder = tmp_path_factory.mktemp("wide")
    return tiny_llama_folder(folder, vocab=len(tiny_tokenizer) + 64, seed=4, hidden=64, tie_word_embeddings=False)


def expected(student, teacher, micro_batches, tokens, temperature):
    """Return cross-entropy and divergence as means over all answer tokens of the step, and the mix with its graph."""
    cross_entropy, divergence, count = 0.0, 0.0, 0
    for document in (document for batch in micro_batches for document in batch):
        ids = torch.from_numpy(document.input_ids)[None]
        scored = torch.from_numpy(document.loss_mask[1:])
        ours, theirs = (model(input_ids=ids).logits[0, :-1][scored][:, :tokens] for model in (student, teacher))
        cross_entropy += functional.cross_entropy(ours, ids[0, 1:][scored], reduction="sum")
        log_q, log_p = (torch.log_softmax(logits / temperature, -1) for logits in (ours, theirs))
        divergence += temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        count += int(scored.sum())
    return cross_entropy / count, divergence / count, count


@pytest.mark.parametrize(
    ("packing", "layout", "temperature", "student", "teacher"),
    [
        (True, "flat", 2.0, "tiny_student", "tiny_teacher"),
        (False, "padded", 1.0, "wide_student", "tiny_teacher"),
        (False, "varlen", 2.0, "tiny_student", "wide_teacher"),
        pytest.param(True, "block", 1.0, "wide_student", "wide_teacher", marks=pytest.mark.slow),
        pytest.param(True, "padded", 2.0, "tiny_teacher", "tiny_student", marks=pytest.mark.slow),
    ],
)
def test_llm_neos_mix(
    run, request, monkeypatch, tiny_chat, tiny_tokenizer, packing, layout, temperature, student, teacher
):
    monkeypatch.setattr(verify, "LAYOUTS", {layout: verify.LAYOUTS[layout]})
    student, teacher = (request.getfixturevalue(name) for name in (student, teacher))
    done = run(
        student={"model": str(student), "dtype": "float32"},
        teacher={"model": str(teacher), "dtype": "float32"},
        data={"source": str(tiny_chat), "held_out": 2, "packing": packing, "max_length": 200},
        adapter={"full": {}},
        loss={"cross_entropy": {"weight": 1 - SHARE}, "forward_kl": {"weight": SHARE, "temperature": temperature}},
        train={"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 9},
    )
    pair = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (student, teacher)]
    pair[1].requires_grad_(False)
    cross_entropy, divergence, count = expected(*pair, done.documents(0), len(tiny_tokenizer), temperature)
    mix = (1 - SHARE) * cross_entropy + SHARE * divergence
    mix.backward()
    norm = torch.stack([p.grad.norm() for p in pair[0].parameters()]).norm()

    (line,) = done.lines
    assert line["answer_tokens"] == count > 50
    assert line["losses"]["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-5)
    assert line["losses"]["forward_kl"] == pytest.approx(divergence.item(), rel=1e-5)
    assert line["loss"] == pytest.approx(mix.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)

"""Batches of a teacher with its own prompts: other prompts, the same answer tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data.batch import Document, collate
from neoplug.data.encode.lengths import fit
from neoplug.data.encode.row_encoder import EncodedRow
from neoplug.models.language_model import LanguageModel
from neoplug.models.verify import language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.live import LiveTeacher

VOCABULARY = 96


def reading(answers, gaps, number):
    """Return ids and loss mask of answers with prompts of `gaps` tokens before each and at the end."""
    rng = np.random.default_rng(number)
    ids, scored = [], []
    for answer, gap in zip([*answers, []], gaps, strict=True):
        ids += [*rng.integers(3, VOCABULARY, gap), *answer]
        scored += [False] * gap + [True] * len(answer)
    return np.array(ids), np.array(scored)


def document(number, ours, theirs, lengths=(3, 2)):
    rng = np.random.default_rng(100 + number)
    answers = [rng.integers(3, VOCABULARY, length) for length in lengths]
    student = reading(answers, ours, number)
    teacher = () if theirs is None else reading(answers, theirs, number + 50)
    return Document(*student, number, *teacher)


DOCUMENTS = [document(0, (2, 3, 0), (9, 1, 4)), document(1, (5, 1, 1), None), document(2, (6, 2, 1), (1, 1, 0))]


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher(llama) -> LanguageModel:
    return language_model(llama, "lm_head", Vocabulary(VOCABULARY), role="teacher")


@pytest.mark.parametrize("layout", ["varlen", "flat", "block", "padded"])
def test_the_signal_equals_the_teachers_forward_on_its_own_texts(llama, teacher, layout):
    teacher.layout = layout
    batch = collate(DOCUMENTS)
    expected = []
    for each in (one.as_teacher() for one in DOCUMENTS):
        logits = llama(torch.from_numpy(each.input_ids)[None]).logits[0]
        expected.append(logits[:-1][torch.from_numpy(each.loss_mask[1:])])
    signal = LiveTeacher(teacher).signal(batch).logits(slice(None))
    torch.testing.assert_close(signal, torch.cat(expected), rtol=1e-4, atol=1e-4)
    seen = batch.for_teacher()
    assert seen.input_ids[seen.positions + 1].tolist() == batch.labels.tolist()


def test_answer_tokens_dropped_from_a_batch_are_dropped_for_the_teacher_too(teacher):
    whole, batch = collate(DOCUMENTS), collate(DOCUMENTS)
    kept = torch.tensor([0, 4, 7])
    batch.positions, batch.labels, batch.rows = batch.positions[kept], batch.labels[kept], batch.rows[kept]
    ours, theirs = (LiveTeacher(teacher).signal(one).logits(slice(None)) for one in (batch, whole))
    torch.testing.assert_close(ours, theirs[kept], rtol=1e-5, atol=1e-5)


def test_a_teacher_text_equal_to_the_students_gives_the_same_signal_bit_for_bit(teacher):
    bare = [Document(one.input_ids, one.loss_mask, one.row) for one in DOCUMENTS]
    twice = [Document(one.input_ids, one.loss_mask, one.row, one.input_ids, one.loss_mask) for one in bare]
    assert collate(bare).teacher is None
    signals = [LiveTeacher(teacher).signal(collate(documents)).logits(slice(None)) for documents in (bare, twice)]
    assert torch.equal(*signals)


gaps = st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12))


@settings(deadline=None)
@given(gaps, gaps, st.integers(2, 40))
def test_student_and_teacher_texts_are_truncated_after_the_same_answer_token(documents, ours, theirs, max_length):
    whole = document(3, ours, theirs, lengths=(4, 5))
    row = EncodedRow(3, whole.input_ids, whole.loss_mask, False, whole.teacher_ids, whole.teacher_loss_mask)
    fitted = fit(row, max_length)
    answers = whole.input_ids[whole.loss_mask]
    fits = [np.flatnonzero(mask)[:9] < max_length for mask in (whole.loss_mask, whole.teacher_loss_mask)]
    kept = int((fits[0] & fits[1]).sum())
    assert fitted.lost_answer_tokens == 9 - kept
    assert fitted.cut == (max(len(whole.input_ids), len(whole.teacher_ids)) > max_length)
    assert len(documents(fitted)) == (kept > 0)
    for cut in documents(fitted):
        assert cut.max_text_length <= max_length
        assert cut.input_ids[cut.loss_mask].tolist() == answers[:kept].tolist()
        assert cut.teacher_ids[cut.teacher_loss_mask].tolist() == answers[:kept].tolist()
        assert cut.input_ids.tolist() == whole.input_ids[: len(cut)].tolist()

"""Cutting to length: a long text is split without loss, a long conversation is truncated and the loss is counted."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data import collate, without_answers
from neoplug.data.encode.lengths import fit
from neoplug.data.encode.row_encoder import EncodedRow


def row(length, scored_from=1, *, windowed=False):
    return EncodedRow(7, np.arange(length), np.arange(length) >= scored_from, windowed)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 40))
def test_every_token_of_a_text_but_the_first_is_in_the_loss_of_one_window(documents, length, max_length):
    found = documents(fit(row(length, windowed=True), max_length))
    scored = np.concatenate([document.input_ids[document.loss_mask] for document in found] or [[]])
    assert scored.tolist() == list(range(1, length))  # each token is its own number
    assert all(len(document) <= max_length and not document.loss_mask[0] for document in found)
    for before, after in pairwise(found):
        assert len(before) == max_length
        assert before.input_ids[-1] == after.input_ids[0]


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(2, 9))
def test_a_window_without_an_answer_token_is_left_out(documents, mask, max_length):
    scored = np.array([False, *mask])
    text = EncodedRow(7, np.arange(len(scored)), scored, windowed=True)
    found = documents(fit(text, max_length))
    assert all(document.answer_tokens for document in found)
    learnt = np.concatenate([document.input_ids[document.loss_mask] for document in found] or [[]])
    assert learnt.tolist() == np.flatnonzero(scored).tolist()


def test_a_conversation_is_truncated_at_its_end(documents):
    fitted = fit(row(10, scored_from=4), 6)
    (document,) = documents(fitted)
    assert document.input_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert (document.answer_tokens, fitted.lost_answer_tokens, fitted.cut) == (2, 4, True)


def test_a_row_without_an_answer_token_left_has_no_document(documents):
    assert documents(fit(row(10, scored_from=4), 4)) == []
    assert fit(row(10, scored_from=4), 4).lost_answer_tokens == 6
    assert documents(fit(row(0, windowed=True), 4)) == documents(fit(row(1, windowed=True), 4)) == []
    assert fit(row(4, scored_from=1), 4).cut is False


def test_without_answers_keeps_the_tokens_and_empties_the_loss_mask(documents):
    (document,) = documents(fit(row(5), 5))
    assert without_answers(document).answer_tokens == 0
    assert without_answers(document).input_ids.tolist() == [0, 1, 2, 3, 4]
    assert document.answer_tokens == 4


def test_without_answers_keeps_the_teachers_text(documents):
    taught = replace(row(5), teacher_ids=np.array([90, 91, 1, 2, 3, 4]), teacher_loss_mask=np.arange(6) >= 2)
    batch = collate(list(map(without_answers, documents(fit(taught, 9)))))
    assert batch.for_teacher().input_ids.tolist() == [90, 91, 1, 2, 3, 4]
    assert batch.answer_tokens == batch.for_teacher().answer_tokens == 0

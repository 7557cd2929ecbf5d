"""Treatments of documents: what each model reads, frequencies, and that answers stay one for one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from neoplug.data.batch import Document
from neoplug_treatments.data_fraction import DataFraction
from neoplug_treatments.teacher_noise import TeacherNoise
from neoplug_treatments.token_dropout import TokenDropout
from neoplug_treatments.truncated_context import TruncatedContext


def document(answers, row=0, tokens=None):
    """Return a document with an `a` in `answers` for each answer token, of the tokens 10, 11, ... unless given."""
    ids = np.arange(10, 10 + len(answers)) if tokens is None else np.asarray(tokens)
    return Document(ids, np.array([letter == "a" for letter in answers]), row)


def with_own_prompt(one):
    """Return the document with two more tokens before the teacher's text."""
    ids, mask = np.append([1, 2], one.input_ids), np.append([False] * 3, one.loss_mask[1:])
    return replace(one, teacher_ids=ids, teacher_loss_mask=mask)


def answers(text):
    return text.input_ids[1:][text.loss_mask[1:]].tolist()


def edited(treatment, one, seed=0):
    (after,) = treatment.edit_documents(documents=[one], rng=torch.Generator().manual_seed(seed))
    return after


def random_document(seed, length=20_000):
    rng = np.random.default_rng(seed)
    tokens = rng.choice([3, 5, 8, 300], p=[0.7, 0.1, 0.1, 0.1], size=length)
    return Document(tokens, rng.random(length) < 0.5, row=0)


@pytest.mark.parametrize(
    ("answered", "tokens", "read"),
    [
        ("----aa", 2, [12, 13, 14, 15]),
        ("----aa", 1, [13, 14, 15]),
        ("----aa", 4, [10, 11, 12, 13, 14, 15]),
        ("----aa", 9, [10, 11, 12, 13, 14, 15]),
        ("--aa--a", 1, [11, 12, 13, 14, 15, 16]),
        ("aaaa", 1, [10, 11, 12, 13]),
        ("----", 1, [10, 11, 12, 13]),
    ],
)
def test_the_student_reads_the_last_tokens_before_its_first_answer(answered, tokens, read):
    for before in (document(answered), with_own_prompt(document(answered))):
        after = TruncatedContext(tokens).edit_documents(documents=[before])[0]
        assert after.input_ids.tolist() == read
        assert answers(after) == answers(before) == answers(after.as_teacher())
        assert np.array_equal(after.as_teacher().input_ids, before.as_teacher().input_ids)


def test_tokens_of_the_prompt_are_left_out_with_the_given_probability():
    before = random_document(1)
    after = edited(TokenDropout(0.2), before)
    prompt = int((~before.loss_mask[1:]).sum())
    assert binomtest(len(before) - len(after), prompt, 0.2).pvalue > 1e-3
    assert answers(after) == answers(before)
    assert np.array_equal(after.as_teacher().input_ids, before.input_ids)


def test_what_is_left_keeps_its_order_and_the_first_token():
    before = document("-----a---a")
    for seed in range(20):
        ids = edited(TokenDropout(0.6), before, seed).input_ids.tolist()
        assert ids == sorted(set(ids))
        assert {10, 15, 19} <= set(ids)
    assert edited(TokenDropout(1.0), before).input_ids.tolist() == [10, 15, 19]
    assert edited(TokenDropout(0.0), before) is before


def test_the_tokens_that_the_teacher_reads_are_replaced_with_the_given_probability():
    before = random_document(2)
    after = edited(TeacherNoise(0.2), before)
    changed = after.as_teacher().input_ids != before.input_ids
    assert binomtest(int(changed.sum()), len(before) - 1, 0.2).pvalue > 1e-3
    assert not changed[0]
    assert np.array_equal(after.input_ids, before.input_ids)
    assert np.array_equal(after.as_teacher().loss_mask, before.loss_mask)


def test_replacements_are_uniform_over_the_other_tokens_of_the_row():
    before = random_document(3)
    replaced = edited(TeacherNoise(1.0), before).as_teacher().input_ids[1:]
    assert not (replaced == before.input_ids[1:]).any()
    of_threes = replaced[before.input_ids[1:] == 3]
    assert chisquare([(of_threes == token).sum() for token in (5, 8, 300)]).pvalue > 1e-3


def test_the_noise_is_in_the_teachers_own_text_where_it_has_one():
    before = with_own_prompt(document("---aa"))
    after = edited(TeacherNoise(1.0), before)
    assert after.as_teacher().input_ids[0] == 1
    assert (after.as_teacher().input_ids[1:] != before.as_teacher().input_ids[1:]).all()
    assert np.array_equal(after.input_ids, before.input_ids)
    alike = document("-aa", tokens=[7, 7, 7])
    assert edited(TeacherNoise(1.0), alike) is alike


def test_a_fraction_of_the_documents_is_trained_and_a_smaller_one_is_within_it():
    documents = [document("--aa", row, tokens=[row, row // 7, 3, 4]) for row in range(4_000)]
    chosen = {f: {d.row for d in DataFraction(f).edit_documents(documents=documents)} for f in (0.1, 0.3, 1.0)}
    assert chosen[0.1] < chosen[0.3] < chosen[1.0] == set(range(4_000))
    for fraction in (0.1, 0.3):
        assert binomtest(len(chosen[fraction]), 4_000, fraction).pvalue > 1e-3
    moved = [replace(one, row=one.row + 5) for one in reversed(documents)]
    assert {one.row - 5 for one in DataFraction(0.3).edit_documents(documents=moved)} == chosen[0.3]


@pytest.mark.parametrize("treatment", [TokenDropout, TeacherNoise])
@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(treatment, probability):
    with pytest.raises(ValueError, match=r"^probability is"):
        treatment(probability)


@pytest.mark.parametrize(
    ("treatment", "option"),
    [(TruncatedContext, 0), (DataFraction, 0.0), (DataFraction, 1.5), (DataFraction, float("nan"))],
)
def test_an_option_out_of_range_is_refused(treatment, option):
    with pytest.raises(ValueError, match=r"but must"):
        treatment(option)

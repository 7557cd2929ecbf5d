"""The comparison of two tokenizers that have one vocabulary and other merges; tokens are counted by hand."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from neoplug.data.batch import Document
from neoplug.data.encode.segmentation import SAMPLE, compare_segmentation

VOCABULARY = {token: number for number, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "<eos>"])}
TEXT = "abc" * 5 + "c" * 10


def bpe(*merges):
    backend = Tokenizer(models.BPE(VOCABULARY, list(merges)))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


STUDENT = bpe(("a", "b"), ("b", "c"), ("ab", "c"))  # abc is one token
TEACHER = bpe(("b", "c"), ("a", "b"), ("ab", "c"))  # abc is a and bc


def document(text, row=0, **teacher):
    ids = np.array(STUDENT(text)["input_ids"])
    return Document(ids, np.ones(len(ids), bool), row, **teacher)


def test_one_text_is_15_tokens_of_one_and_20_of_the_other():
    assert (len(STUDENT(TEXT)["input_ids"]), len(TEACHER(TEXT)["input_ids"])) == (15, 20)
    found = compare_segmentation([[document("cab", 3)], [document("c" + TEXT, 4)]], STUDENT, TEACHER, seed=0)
    assert (found.compared, found.different, found.share) == (2, 1, 0.5)
    assert found.describe(lambda row: f"{row} of chat") == (
        "splits 1 of 2 documents (50.00%) into other tokens, such as row 4 of chat: 21 tokens, the student's 16, which "
        "differ from token 1 on: 'a' 'bc' 'a', the student's 'abc' 'abc' 'abc'"
    )


def test_one_text_that_begins_another_differs_at_its_end():
    found = compare_segmentation([[document("ccabc")]], STUDENT, bpe(("a", "b"), ("b", "c")), seed=0)
    assert "differ from token 2 on: 'ab' 'c', the student's 'abc'" in found.describe(str)


def test_a_tokenizer_does_not_differ_from_itself():
    found = compare_segmentation([[document(TEXT)], [document("ab<eos>")]], STUDENT, STUDENT, seed=0)
    assert (found.compared, found.different, found.describe(str)) == (2, 0, "")


@pytest.mark.parametrize(("answer", "different"), [("cab", 0), ("abc", 1)])
def test_of_a_teacher_with_its_own_prompts_only_the_answers_are_compared(answer, different):
    prompt, ids = STUDENT(TEXT)["input_ids"], STUDENT(answer)["input_ids"]
    mask = np.arange(len(prompt) + len(ids)) >= len(prompt)
    own = np.array([*TEACHER(TEXT)["input_ids"], *ids])
    given = Document(np.array([*prompt, *ids]), mask, 0, teacher_ids=own, teacher_loss_mask=np.arange(len(own)) >= 20)
    assert compare_segmentation([[given]], STUDENT, TEACHER, seed=0).different == different


def test_the_sample_has_a_fixed_size_and_depends_on_the_seed_alone():
    rows = [[document("abc" if row % 7 == 0 else "c", row), document("c", row)] for row in range(SAMPLE)]
    first, again, other = (compare_segmentation(rows, STUDENT, TEACHER, seed) for seed in (0, 0, 1))
    assert first.compared == other.compared == SAMPLE
    assert first == again
    assert first.example != other.example
    assert 0.03 < first.share < 0.12  # of all documents 1 in 14

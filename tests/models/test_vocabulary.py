"""The shared vocabulary of small tokenizers, whose result is known, and of a real one."""

import pytest
import torch

from neoplug.errors import RecipeError
from neoplug.models.vocabulary import shared


class Words:
    """The part of a tokenizer that the comparison reads."""

    def __init__(self, tokens):
        self.tokens = dict(tokens)

    def get_vocab(self):
        return self.tokens


def words(count, **more):
    return Words({f"w{number}": number for number in range(count)} | more)


def test_one_tokenizer_and_padded_rows_of_either_head():
    """Qwen 2.5: 151,665 tokens, heads of 151,936 and 152,064 rows."""
    found = shared(words(151_665), words(151_665), 151_936, 152_064)
    assert found.size == 151_665
    assert found.ids is None
    labels = torch.tensor([0, 7, 151_664])
    assert found.index(labels).tolist() == labels.tolist()
    assert found.unshared(torch.tensor([[3, 151_665], [151_664, 151_665]])) == [151_665]


def test_a_token_of_one_tokenizer_is_left_out():
    found = shared(words(10, extra=10), words(10), 16, 16)
    assert (found.size, found.ids) == (10, None)
    found = shared(words(10), words(10, extra=10), 16, 16)
    assert (found.size, found.ids) == (10, None)


def test_ids_that_are_not_shared_leave_a_gap():
    student = Words({"a": 0, "b": 1, "mine": 2, "c": 4})
    found = shared(student, Words({"a": 0, "b": 1, "c": 4, "theirs": 5}), 8, 8)
    assert found.size == 3
    assert found.ids.tolist() == [0, 1, 4]
    assert found.index(torch.tensor([4, 0, 1, 4])).tolist() == [2, 0, 1, 2]
    assert found.unshared(torch.tensor([4, 2, 5, 2, 0])) == [2, 5]
    assert found.ids_on(torch.device("cpu")).tolist() == [0, 1, 4]


def test_a_tokenizer_larger_than_a_head():
    found = shared(words(10), words(10), 8, 16)
    assert (found.size, found.ids) == (8, None)


def test_a_token_with_two_ids_is_refused():
    student, teacher = words(10), Words({f"w{number}": (number + 1) % 10 for number in range(10)})
    with pytest.raises(RecipeError) as caught:
        shared(student, teacher, 10, 10)
    (problem,) = caught.value.problems
    assert problem.path == ("teacher", "model")
    assert "'w0' is 0 in the student, 1 in the teacher" in problem.what
    assert problem.what.count(" in the student") == 5
    assert "and 5 more" in problem.what


def test_an_id_with_two_tokens_is_refused():
    with pytest.raises(RecipeError, match=r"id 10 is 'mine' in the student, 'theirs' in the teacher"):
        shared(words(10, mine=10), words(10, theirs=10), 11, 11)


def test_tokenizers_without_a_common_token_are_refused():
    with pytest.raises(RecipeError, match="share no token"):
        shared(Words({"a": 0}), Words({"b": 1}), 2, 2)


def test_a_real_tokenizer_with_itself(tiny_tokenizer):
    found = shared(tiny_tokenizer, tiny_tokenizer, 400, 384)
    assert (found.size, found.ids) == (384, None)

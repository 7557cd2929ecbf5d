"""Reported differences between two tokenizers and templates; the expected texts are written by hand."""

import copy

import pytest

from neoplug.data.encode.differences import Templates, differences

SAME = Templates(None, None)


@pytest.fixture
def other(tiny_tokenizer):
    """Return the tiny tokenizer with another end-of-sequence token and another template, for the teacher."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    return tokenizer


def test_a_tokenizer_does_not_differ_from_its_copy(tiny_tokenizer):
    assert differences(tiny_tokenizer, copy.deepcopy(tiny_tokenizer), SAME) == []


def test_differences_of_special_tokens_templates_and_ends_of_answers(tiny_tokenizer, other):
    eos = "its eos_token is '<|endoftext|>', the student's is '<|im_end|>'"
    closes = "its chat template ends an answer with '<|endoftext|>'; the answers that it reads end with '<|im_end|>'"
    writes = (
        "its chat template differs from character 33 on: "
        "'endoftext|>\\n<|im_start|>assistant\\nIt is ', the student's 'im_end|>\\n<|im_start|>assistant\\nIt is 4.<'"
    )
    assert differences(tiny_tokenizer, other, SAME) == [eos, writes, closes]
    assert differences(tiny_tokenizer, other, None) == [eos]
    assert differences(tiny_tokenizer, other, Templates(other.chat_template, None)) == [eos]
    assert differences(tiny_tokenizer, other, Templates(None, other.chat_template)) == [eos, closes]


def test_a_difference_of_the_tokens_added_around_a_text(tiny_tokenizer, llama_tokenizer):
    assert "its tokenizer adds ['<s>'] before a text, the student's nothing" in differences(
        tiny_tokenizer, llama_tokenizer, None
    )


def test_templates_that_cannot_be_compared(tiny_tokenizer, other, llama_tokenizer):
    other.chat_template = "{{ raise_exception('no') }}"
    assert differences(tiny_tokenizer, other, SAME)[1:] == [
        "its chat template cannot be compared with the student's: no"
    ]
    assert not any("template" in line for line in differences(tiny_tokenizer, llama_tokenizer, SAME))

"""Tokens and loss masks of texts, of prompts with completions and of Alpaca's rows."""

import pytest

from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.ingest.columns import recognise

ALPACA = {"instruction": "Add.", "input": "1, 2", "output": "3"}


def tokenised(tokenizer, row, train_on="answers", template=None):
    content = recognise(list(row), {}).content(row, 0)
    return next(RowEncoder(tokenizer, template, train_on).encode([content], on_drop=pytest.fail))


def scored(tokenizer, row, **options):
    document = tokenised(tokenizer, row, **options)
    return tokenizer.decode(document.input_ids[document.loss_mask])


def test_all_tokens_of_a_text_are_in_the_loss_and_an_end_token_is_added(tiny_tokenizer, llama_tokenizer):
    for tokenizer in (tiny_tokenizer, llama_tokenizer):
        row = tokenised(tokenizer, {"text": "The statement is"})
        assert row.input_ids.tolist() == [*tokenizer("The statement is")["input_ids"], tokenizer.eos_token_id]
        assert row.loss_mask.tolist() == [False] + [True] * (len(row.input_ids) - 1)
        assert row.windowed


def test_an_existing_end_token_is_not_repeated(tiny_tokenizer, llama_tokenizer):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    for row in ({"text": "a<|im_end|>"}, {"prompt": "a", "completion": "b<|im_end|>"}):
        assert tokenised(tiny_tokenizer, row).input_ids.tolist().count(tiny_tokenizer.eos_token_id) == 1
    backend = llama_tokenizer.backend_tokenizer.from_str(llama_tokenizer.backend_tokenizer.to_str())
    special = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    closing = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert tokenised(closing, {"text": "the"}).input_ids.tolist() == closing("the")["input_ids"]
    pair = tokenised(closing, {"prompt": "the", "completion": " end"}).input_ids.tolist()
    assert pair == [1, *closing("the end", add_special_tokens=False)["input_ids"], 2]


def test_special_tokens_are_added_before_a_prompt_and_after_a_completion(llama_tokenizer):
    row = tokenised(llama_tokenizer, {"prompt": "the value", "completion": " is an object"})
    assert row.input_ids.tolist() == [*llama_tokenizer("the value is an object")["input_ids"], 2]
    prompt = len(llama_tokenizer("the value")["input_ids"])
    assert row.loss_mask.tolist() == [False] * prompt + [True] * (len(row.input_ids) - prompt)


@pytest.mark.parametrize("prompt", ["The answer: ", "The answer:", "e", "A\n", ""])
@pytest.mark.parametrize("completion", ["r is an answer", " is", "\nthe end"])
def test_the_prompts_tokens_are_those_that_generation_starts_from(tiny_tokenizer, llama_tokenizer, prompt, completion):
    for tokenizer in (tiny_tokenizer, llama_tokenizer):
        row = tokenised(tokenizer, {"prompt": prompt, "completion": completion})
        alone = tokenizer(prompt)["input_ids"]
        assert row.input_ids.tolist()[: len(alone)] == alone
        assert tokenizer.decode(row.input_ids[len(tokenizer("")["input_ids"]) :]).endswith(
            (prompt + completion).lstrip(" ") + tokenizer.eos_token
        )
        assert row.loss_mask.tolist() == [False] * max(1, len(alone)) + [True] * (
            len(row.input_ids) - max(1, len(alone))
        )


def test_train_on_all_puts_the_prompt_in_the_loss(tiny_tokenizer):
    row = {"prompt": "The value", "completion": " is"}
    assert tokenised(tiny_tokenizer, row, "all").loss_mask.tolist()[1:] == [True] * (
        len(tiny_tokenizer("The value is")["input_ids"])
    )
    assert scored(tiny_tokenizer, row, train_on="last") == scored(tiny_tokenizer, row) == " is<|im_end|>"


def test_alpaca_rows_are_rendered_by_the_chat_template_where_there_is_one(tiny_tokenizer):
    messages = [{"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}]
    expected = tiny_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert tokenised(tiny_tokenizer, ALPACA).input_ids.tolist() == expected
    assert scored(tiny_tokenizer, ALPACA) == "3<|im_end|>"


def test_alpaca_rows_without_a_chat_template_get_the_prompt_of_the_alpaca_model(trimming_tokenizer):
    """The expected texts are the two prompts of Stanford Alpaca's train.py."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:"
    )
    without_input = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:"
    )
    for row, prompt in ((ALPACA, with_input), (ALPACA | {"input": ""}, without_input)):
        assert trimming_tokenizer.decode(tokenised(trimming_tokenizer, row).input_ids) == prompt + "3<|end|>"
        assert scored(trimming_tokenizer, row) == "3<|end|>"

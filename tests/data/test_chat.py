"""Conversations: which characters and tokens are the assistant's, for templates with expected texts written by hand."""

import json

import pytest

from neoplug.data.encode.chat import ChatTemplate, RenderError, UnstableTemplate, template_text
from neoplug.data.encode.faults import CHANGES_EARLIER_TEXT
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.ingest.columns import recognise
from neoplug.errors import RecipeError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Sûr? 漢字"},
    {"role": "assistant", "content": "\n\nYes, naïve one 漢字."},
]
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
FORGETFUL = (  # removes the reasoning of earlier turns, as templates of reasoning models do
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHTS = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "<think>hm</think>b"},
    {"role": "user", "content": "c?"},
    {"role": "assistant", "content": "<think>so</think>d"},
]


def spans(tokenizer, messages, template=None, turns="answers"):
    rendered = ChatTemplate(tokenizer, template).render(messages, turns)
    return [rendered.text[start:end] for start, end in rendered.spans]


def tokenised(tokenizer, messages, template=None, train_on="answers"):
    content = recognise(["messages"], {}).content({"messages": messages}, 0)
    return next(RowEncoder(tokenizer, template, train_on).encode([content], on_drop=pytest.fail))


def test_every_assistant_turn_is_an_answer_with_its_end_token(tiny_tokenizer):
    assert spans(tiny_tokenizer, TURNS) == ["It is 4.<|im_end|>", "\n\nYes, naïve one 漢字.<|im_end|>"]


def test_train_on_last_and_all_select_the_last_turn_and_the_whole_text(tiny_tokenizer):
    assert spans(tiny_tokenizer, TURNS, turns="last") == ["\n\nYes, naïve one 漢字.<|im_end|>"]
    whole = tiny_tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert spans(tiny_tokenizer, TURNS, turns="all") == [whole]
    assert tokenised(tiny_tokenizer, TURNS, train_on="all").loss_mask.tolist()[:3] == [False, True, True]


TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['tool_calls'] %}call {{ m['tool_calls'][0]['name'] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLING = [
    TURNS[1],
    {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
    {"role": "tool", "content": "4"},
    TURNS[2],
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [("answers", ["call add<|im_end|>", "It is 4.<|im_end|>"]), ("last", ["It is 4.<|im_end|>"])],
)
def test_tool_calls_are_answers_and_tool_results_are_not(tiny_tokenizer, turns, expected):
    """The conversation ends with a user turn, which is no answer either."""
    assert spans(tiny_tokenizer, CALLING, TOOLS, turns) == expected
    row = tokenised(tiny_tokenizer, CALLING, TOOLS, turns)
    assert tiny_tokenizer.decode(row.input_ids[row.loss_mask]) == "".join(expected)


def test_train_on_all_accepts_a_conversation_without_an_answer(tiny_tokenizer):
    row = tokenised(tiny_tokenizer, TURNS[:1], train_on="all")
    assert row.loss_mask.tolist() == [False] + [True] * (len(row.input_ids) - 1)
    assert not tokenised(tiny_tokenizer, TURNS[:1]).loss_mask.any()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0]['content'] + 1 }}", 'TypeError: can only concatenate str (not "int") to str'),
        ("{{ messages[9]['content'] }}", "list object has no element 9"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_an_exception_in_a_template_is_the_render_errors_text(tiny_tokenizer, template, why):
    with pytest.raises(RenderError) as caught:
        spans(tiny_tokenizer, TURNS, template)
    assert str(caught.value) == why


def test_a_template_without_generation_prompt(llama_tokenizer):
    assert spans(llama_tokenizer, TURNS[1:3], INST) == [" It is 4.</s>"]


def test_the_end_token_after_marked_text_is_in_the_loss(tiny_tokenizer):
    bare = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert spans(tiny_tokenizer, TURNS, bare) == spans(tiny_tokenizer, TURNS, MARKED) == spans(tiny_tokenizer, TURNS)


def test_an_answer_that_is_the_first_message(tiny_tokenizer):
    assert spans(tiny_tokenizer, TURNS[2:]) == spans(tiny_tokenizer, TURNS)
    assert spans(tiny_tokenizer, TURNS[2:3]) == ["It is 4.<|im_end|>"]


def test_line_breaks_that_end_a_turn_without_an_end_token_are_in_the_loss(tiny_tokenizer):
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    prompted = plain + "{% if add_generation_prompt %}assistant: {% endif %}"
    assert spans(tiny_tokenizer, TURNS[1:3], prompted) == ["It is 4.\n\n"]


@pytest.mark.parametrize("template", [None, MARKED])
def test_tokens_are_those_of_apply_chat_template(tiny_tokenizer, template):
    expected = tiny_tokenizer.apply_chat_template(TURNS, chat_template=template, return_dict=True)["input_ids"]
    assert tokenised(tiny_tokenizer, TURNS, template).input_ids.tolist() == expected


def test_the_mask_is_that_of_transformers_for_a_marked_template(tiny_tokenizer):
    expected = tiny_tokenizer.apply_chat_template(
        TURNS, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    for template in (MARKED, None):
        assert tokenised(tiny_tokenizer, TURNS, template).loss_mask.astype(int).tolist() == expected


def test_the_tokens_in_the_loss_decode_to_the_answers(tiny_tokenizer, trimming_tokenizer):
    for tokenizer in (tiny_tokenizer, trimming_tokenizer):
        end = tokenizer.eos_token
        template = tiny_tokenizer.chat_template.replace("<|im_start|>", "<<").replace("<|im_end|>", end)
        for answer in ("It is 4.", " 4 ", "four\n", "\t"):
            messages = [TURNS[1], {"role": "assistant", "content": answer}]
            row = tokenised(tokenizer, messages, template)
            assert tokenizer.decode(row.input_ids[row.loss_mask]) == answer + end


def test_a_token_that_spans_prompt_and_answer_belongs_to_the_prompt(tiny_tokenizer):
    joined = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": "e"}, {"role": "assistant", "content": "r end"}]
    row = tokenised(tiny_tokenizer, messages, joined)
    first = tiny_tokenizer.decode(row.input_ids[:1])
    assert first == "er"  # the token that spans the border
    assert tiny_tokenizer.decode(row.input_ids[row.loss_mask]) == " end<|im_end|>"  # the template has no stop token


@pytest.mark.parametrize(
    ("answer", "scored"),
    [("the end", " end<|end|>"), (" the end", " the end<|end|>"), (" ", "<|end|>"), ("  x", " x<|end|>")],
)
def test_a_token_that_starts_with_the_prompts_last_space_is_in_the_prompt(
    tiny_tokenizer, trimming_tokenizer, answer, scored
):
    """The second tokenizer itself reports that " the" starts at the t, and that a single space starts after itself."""
    for tokenizer in (tiny_tokenizer, trimming_tokenizer):
        end = tokenizer.eos_token
        spoken = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}" + end + "{% endfor %}"
        spoken += "{% if add_generation_prompt %}assistant: {% endif %}"
        row = tokenised(tokenizer, [TURNS[1], {"role": "assistant", "content": answer}], spoken)
        assert tokenizer.decode(row.input_ids[row.loss_mask]) == scored.replace("<|end|>", end)


def test_a_row_of_which_the_template_changes_earlier_text_is_dropped(tiny_tokenizer):
    with pytest.raises(UnstableTemplate, match=r"at character .*'<think>hm</think>b"):
        spans(tiny_tokenizer, THOUGHTS, FORGETFUL)
    columns = recognise(["messages"], {})
    contents = [columns.content({"messages": turns}, number) for number, turns in enumerate((TURNS, THOUGHTS, TURNS))]
    dropped = []
    encoder = RowEncoder(tiny_tokenizer, FORGETFUL, "answers")
    assert [row.row for row in encoder.encode(contents, lambda *why: dropped.append(why))] == [0, 2]
    assert dropped == [(1, f"the chat template {CHANGES_EARLIER_TEXT}")]
    assert spans(tiny_tokenizer, THOUGHTS, FORGETFUL, turns="last") == ["<think>so</think>d<|im_end|>"]
    assert spans(tiny_tokenizer, THOUGHTS[:2], FORGETFUL) == ["<think>hm</think>b<|im_end|>"]


def test_a_generation_prompt_that_answers_do_not_begin_with_is_unstable(tiny_tokenizer):
    other = tiny_tokenizer.chat_template.replace("assistant\n{% endif", "model\n{% endif")
    with pytest.raises(UnstableTemplate):
        spans(tiny_tokenizer, TURNS, other)


def test_an_exception_raised_by_a_template_is_a_render_error(tiny_tokenizer):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    with pytest.raises(RenderError, match="no system here"):
        spans(tiny_tokenizer, TURNS, strict)


def test_a_missing_template_is_an_error_with_the_recipes_key(llama_tokenizer):
    with pytest.raises(RecipeError, match="has no chat template") as caught:
        ChatTemplate(llama_tokenizer, None)
    assert caught.value.problems[0].path == ("data", "chat_template")


def test_a_template_is_text_or_a_file(tiny_tokenizer, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(INST, encoding="utf-8")
    assert template_text(str(file), tiny_tokenizer) == template_text(INST, tiny_tokenizer) == INST
    assert template_text(None, tiny_tokenizer) is None
    with pytest.raises(RecipeError, match=r"nowhere\.jinja"):
        template_text(str(tmp_path / "nowhere.jinja"), tiny_tokenizer)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("written", [list, json.dumps])
def test_the_tools_of_a_row_are_passed_to_the_template(tiny_tokenizer, marked, written):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    answer = "{{ messages[1]['content'] }}"
    answer = "{% generation %}" + answer + "{% endgeneration %}" if marked else answer
    template = "{% for tool in tools %}[{{ tool['function']['name'] }}]{% endfor %}{{ messages[0]['content'] }} A: "
    template += "{% if messages|length > 1 %}" + answer + "{% endif %}"
    turns = [{"role": "user", "content": "now?"}, {"role": "assistant", "content": "sunny"}]
    columns = recognise(["messages", "tools"], {})
    found = columns.content({"messages": turns, "tools": written([tool])}, 0)
    rendered = ChatTemplate(tiny_tokenizer, template).render(turns, "answers", found.values["tools"])
    assert rendered.text == "[weather]now? A: sunny"
    assert [rendered.text[a:b] for a, b in rendered.spans] == ["sunny"]
    assert "tools" not in columns.content({"messages": turns, "tools": None}, 0).values
    assert columns.content({"messages": turns, "tools": "rain"}, 0) == "tools is str, not a list"
    (row,) = RowEncoder(tiny_tokenizer, template, "answers").encode([found], pytest.fail)
    assert tiny_tokenizer.decode(row.input_ids) == rendered.text + "<|im_end|>"  # no stop token is in the template

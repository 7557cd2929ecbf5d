"""What a row says is what is trained: compared with plain `apply_chat_template`, or with texts written by hand."""

import copy
import json

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from neoplug.data.dataset import load_corpus, load_unvalidated_corpus
from neoplug.data.encode.chat import ChatTemplate, UnstableTemplate, template_text
from neoplug.data.encode.faults import CHANGES_PROMPT
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.encode.teacher_encoder import TeacherEncoder
from neoplug.data.ingest.columns import recognise
from neoplug.data.ingest.fixes import fixes_of
from neoplug.errors import RecipeError

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
THREE_ROLES = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}" + TURN + "{% endif %}{% endfor %}"
)
THREE_ROLES += ASK
PHI = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
PHI += "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
GLM = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
GLM += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
MARKED_CONTENT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


TWO = [user("a?"), assistant("b"), user("c?"), assistant("d")]


@pytest.fixture(scope="module")
def roles_tokenizer(tiny_tokenizer):
    """Return a tokenizer with one token for each role, and an end of turn that is not its end of sequence."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    names = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def encoded(tokenizer, rows, template=None, train_on="answers", teacher=None, **options):
    """Return the encoded rows, and the reasons for which rows are dropped."""
    reasons = []
    columns = recognise(list(rows[0]), {})
    contents = [columns.content(row, number) for number, row in enumerate(rows)]
    encoder = RowEncoder(tokenizer, template, train_on, teacher, **options)
    return list(encoder.encode(contents, lambda row, reason: reasons.append((row, reason)))), reasons


def scored(tokenizer, messages, template=None, **options):
    """Return the scored parts of a conversation's text."""
    (row,), reasons = encoded(tokenizer, [{"messages": messages}], template, **options)
    assert not reasons
    parts, before = [], False
    for token, is_scored in zip(row.input_ids.tolist(), row.loss_mask.tolist(), strict=True):
        if is_scored:
            parts = [*parts[:-1], [*parts[-1], token]] if before else [*parts, [token]]
        before = is_scored
    return [tokenizer.decode(part) for part in parts]


@pytest.fixture
def named(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tool_use = "{{ tools | tojson }}\n" + CHATML
    tokenizer.chat_template = {"default": CHATML, "tool_use": tool_use, "rag": "Sources.\n" + CHATML}
    return tokenizer


def test_each_row_is_rendered_by_the_named_template_that_transformers_chooses(named):
    rows = [{"messages": TWO}, {"messages": TWO, "tools": TOOLS}]
    expected = [
        named.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=True)["input_ids"]
        for row in rows
    ]
    assert expected[0] != expected[1]
    for found in encoded(named, rows)[0], encoded(named, rows[::-1])[0][::-1]:
        assert [row.input_ids.tolist() for row in found] == expected
    own, _ = encoded(named, rows, CHATML.replace("user", "user"), teacher=TeacherEncoder(named, None))
    assert own[0].teacher_ids.tolist() == expected[0]
    given, _ = encoded(named, rows[:1], template_text("rag", named))
    assert named.decode(given[0].input_ids).startswith("Sources.\n")


def test_named_templates_without_a_default(named):
    del named.chat_template["default"]
    rows, reasons = encoded(named, [{"messages": TWO, "tools": TOOLS}, {"messages": TWO, "tools": None}])
    assert [row.row for row in rows] == [0]
    assert "multiple chat templates" in reasons[0][1]
    del named.chat_template["tool_use"]
    with pytest.raises(RecipeError, match=r"several chat templates \(rag\)(?s:.*)chat_template: rag"):
        ChatTemplate(named, None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [*TWO[:1], {"role": "tool", "content": "SEEN"}, *TWO[1:2]]}, "leaves out a turn of `tool`"),
        ({"messages": [*TWO[:3], assistant("3", reasoning_content="HM")]}, "leaves out `reasoning_content`"),
        ({"messages": [*TWO[:3], assistant("3", thinking="HM")]}, "leaves out `thinking`"),
        ({"messages": TWO, "tools": TOOLS}, "leaves out `tools`"),
        (
            {"messages": [*TWO[:3], assistant("3", tool_calls=[{"function": {"name": "w", "arguments": {"x": 1}}}])]},
            "leaves out `tool_calls`",
        ),
        (
            {"messages": [*TWO, {"role": "bing", "content": "x"}]},
            "has no role `bing`; the chat template leaves out a turn",
        ),
    ],
)
def test_what_leaves_no_trace_in_the_text_is_a_fault_of_the_row(tiny_tokenizer, row, reason):
    rows, reasons = encoded(tiny_tokenizer, [row, {"messages": TWO}], THREE_ROLES)
    assert [found.row for found in rows] == [1]
    assert reason in reasons[0][1]
    assert fixes_of([reasons[0][1]])
    kept, reasons = encoded(tiny_tokenizer, [row, {"messages": TWO}], THREE_ROLES, keep_incomplete=True)
    assert not reasons
    assert reason in kept[0].notes[0]
    messages = row["messages"]
    expected = tiny_tokenizer.apply_chat_template(messages, chat_template=THREE_ROLES, return_dict=True)["input_ids"]
    assert kept[0].input_ids.tolist() == expected
    assert not kept[1].notes


def test_a_thought_that_the_template_cuts_out_of_the_content(tiny_tokenizer):
    cutting = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    thought = [user("a?"), assistant("<think>hm</think>b")]
    _, reasons = encoded(tiny_tokenizer, [{"messages": thought}], cutting)
    assert reasons == [(0, "the chat template leaves out a thought")]
    assert scored(tiny_tokenizer, thought, CHATML) == ["<think>hm</think>b<|im_end|>"]


def test_a_thought_of_an_earlier_turn_is_reported_where_only_the_last_is_scored(tiny_tokenizer):
    latest = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
    thoughts = [user("a?"), assistant("<think>hm</think>b"), user("c?"), assistant("<think>so</think>d")]
    (row,), reasons = encoded(tiny_tokenizer, [{"messages": thoughts}], latest, "last")
    assert not reasons
    assert "a thought of a turn that is not scored" in row.notes[0]
    assert tiny_tokenizer.decode(row.input_ids[row.loss_mask]) == "<think>so</think>d<|im_end|>"


def test_texts_that_the_template_changes_are_not_left_out(tiny_tokenizer):
    """The contents are short, and equal to parts of the template's own text."""
    template = CHATML.replace("m.content", "m.content | trim | upper | tojson")
    messages = [user(" a "), assistant("s\n"), user("1"), assistant("im")]
    assert scored(tiny_tokenizer, messages, template) == ['"S"<|im_end|>', '"IM"<|im_end|>']


def test_a_call_of_which_the_template_shows_the_arguments_is_not_left_out(tiny_tokenizer):
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls)
    for arguments in ({"x": "a"}, {"n": 1}, {}):
        call = {"type": "function", "function": {"name": "w", "arguments": arguments}}
        found = scored(tiny_tokenizer, [user("?"), assistant("", tool_calls=[call])], template)
        assert found == [json.dumps(arguments) + "<|im_end|>"]


@pytest.mark.parametrize("key", ["from", "role"])
def test_roles_of_other_tools(tiny_tokenizer, key):
    value = "value" if key == "from" else "content"
    names = ["developer", "human" if key == "from" else "user", "function_call", "observation", "gpt"]
    row = {"conversations": [{key: name, value: name.upper()} for name in names]}
    expected = [
        {"role": role, "content": name.upper()}
        for role, name in zip(["system", "user", "assistant", "tool", "assistant"], names, strict=True)
    ]
    (found,), reasons = encoded(tiny_tokenizer, [row], CHATML)
    assert not reasons
    rendered = tiny_tokenizer.apply_chat_template(expected, chat_template=CHATML, return_dict=True)["input_ids"]
    assert found.input_ids.tolist() == rendered
    assert tiny_tokenizer.decode(found.input_ids[found.loss_mask]) == "FUNCTION_CALL<|im_end|>GPT<|im_end|>"


@pytest.fixture(scope="module")
def affix_tokenizer(tiny_tokenizer):
    """Return a tokenizer that adds special tokens before and after a text."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    special = [("<|im_start|>", 1), ("<|endoftext|>", 0), ("<|im_end|>", 2)]
    single = "<|endoftext|> <|im_start|> $A <|im_end|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("opening", ["", "<|im_start|>", "<|endoftext|><|im_start|>"])
@pytest.mark.parametrize("closing", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|> \n\n"])
def test_special_tokens_that_the_text_has_are_not_added_again(affix_tokenizer, opening, closing):
    end = closing or "<|im_end|>"
    expected = affix_tokenizer("<|endoftext|><|im_start|>the value" + end, add_special_tokens=False)["input_ids"]
    (text,), _ = encoded(affix_tokenizer, [{"text": opening + "the value" + closing}])
    assert text.input_ids.tolist() == expected
    (pair,), _ = encoded(affix_tokenizer, [{"prompt": opening + "the", "completion": " value" + closing}])
    assert pair.input_ids.tolist() == expected
    assert affix_tokenizer.decode(pair.input_ids[pair.loss_mask]) == " value<|im_end|>"


def test_every_scored_answer_ends_in_a_stop_token(roles_tokenizer):
    """The end of a turn may be a token of the template, the next role's header, or the tokenizer's end."""
    assert scored(roles_tokenizer, TWO, MARKED_CONTENT) == ["b<|end|>", "d<|end|>"]
    unmarked = MARKED_CONTENT.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    asking = unmarked + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    assert scored(roles_tokenizer, TWO, asking) == ["b<|end|>", "d<|end|>"]
    assert scored(roles_tokenizer, TWO, GLM) == ["\nb<|user|>", "\nd<|im_end|>"]
    marked = GLM.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    marked = marked.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    )
    assert scored(roles_tokenizer, TWO, marked) == ["b<|user|>", "d<|im_end|>"]


def test_an_added_or_a_missing_stop_token_is_reported(roles_tokenizer, tiny_tokenizer):
    (row,), _ = encoded(roles_tokenizer, [{"messages": TWO}], GLM)
    assert row.notes == ["with <|im_end|> added, since the chat template ends the last answer with no stop token"]
    plain = "{% for m in messages %}{{ m.role }}|{{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant|{% endif %}"
    (row,), _ = encoded(tiny_tokenizer, [{"messages": TWO}], plain)
    assert row.notes == ["with an answer that no stop token ends"]
    assert tiny_tokenizer.decode(row.input_ids[row.loss_mask]) == "b\nd\n<|im_end|>"
    (row,), _ = encoded(tiny_tokenizer, [{"messages": TWO}])
    assert not row.notes


def test_a_tag_in_the_content_is_no_stop_token(roles_tokenizer):
    tokenizer = copy.deepcopy(roles_tokenizer)
    tokenizer.add_tokens([AddedToken("</call>", special=False, normalized=False)])
    messages = [user("a?"), assistant("x</call>"), user("b?"), assistant("y</call>")]
    assert scored(tokenizer, messages, GLM) == ["\nx</call><|user|>", "\ny</call><|im_end|>"]


def test_an_end_mark_after_the_last_turn_is_no_change_of_earlier_text(roles_tokenizer):
    assert scored(roles_tokenizer, TWO, PHI) == ["b<|end|>", "d<|end|>"]
    assert scored(roles_tokenizer, TWO, PHI, train_on="last") == ["d<|end|>"]
    expected = roles_tokenizer.apply_chat_template(TWO, chat_template=PHI, return_dict=True)["input_ids"]
    (row,), _ = encoded(roles_tokenizer, [{"messages": TWO}], PHI)
    assert row.input_ids.tolist() == expected
    only_last = PHI.replace("<|end|>\n{% endfor %}", "{% endfor %}")  # the end mark is the only stop token
    assert scored(roles_tokenizer, TWO, only_last) == ["b<|user|>", "d<|im_end|>"]


def test_a_generation_prompt_that_opens_a_thought_is_named(tiny_tokenizer):
    opening = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    rows, reasons = encoded(tiny_tokenizer, [{"messages": TWO}], opening, "last")
    assert not rows
    cause = "opens '<think>\\n' in its generation prompt, with which the answer does not begin"
    assert reasons == [(0, f"the chat template {cause}")]
    (fix,) = fixes_of([reasons[0][1]])
    assert "generation prompt" in fix
    assert "train_on" not in fix
    thinking = [user("a?"), assistant("<think>\nhm</think>b")]
    assert scored(tiny_tokenizer, thinking, opening) == ["hm</think>b<|im_end|>"]


def test_train_on_last_is_no_fix_for_a_change_before_the_last_answer(tiny_tokenizer):
    counting = "{{ messages | length }}\n" + CHATML
    with pytest.raises(UnstableTemplate) as caught:
        ChatTemplate(tiny_tokenizer, counting).render(TWO[:2], "last")
    assert caught.value.reason == CHANGES_PROMPT
    (fix,) = fixes_of([f"the chat template {CHANGES_PROMPT}"])
    assert "train_on" not in fix


def test_one_row_that_cannot_be_located_among_many_does_not_end_the_run(tmp_path, tiny_tokenizer, section):
    latest = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
    rows = [{"messages": [user(f"{n}?"), *TWO[1:]]} for n in range(40)]
    rows[3] = {"messages": [user("a?"), assistant("<think>hm</think>b"), *TWO[2:]]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(section(file, chat_template=latest), tiny_tokenizer)
    (reason,) = corpus.report.dropped
    assert "changes earlier text" in reason
    with pytest.raises(RecipeError, match="train_on: last"):
        load_corpus(section(file, chat_template=latest, max_dropped_rows=0.0), tiny_tokenizer)


@pytest.mark.parametrize("mask", [{"weight": 0}, {"loss": False}, {"train": False}, {"trainable": 0}, {"weight": 0.0}])
@pytest.mark.parametrize("template", [CHATML, MARKED_CONTENT])
def test_a_turn_that_excludes_itself_is_not_scored(roles_tokenizer, mask, template):
    end = "<|im_end|>" if template == CHATML else "<|end|>"
    first, last = [TWO[0], {**TWO[1], **mask}, *TWO[2:]], [*TWO[:3], {**TWO[3], **mask}]
    assert scored(roles_tokenizer, first, template) == [f"d{end}"]
    assert scored(roles_tokenizer, last, template) == [f"b{end}"]
    both = [{"weight": 1, "train": None, **turn} for turn in first]
    both[1]["weight"] = 0
    assert scored(roles_tokenizer, both, template) == [f"d{end}"]


def test_masks_under_train_on_all(tiny_tokenizer):
    found = scored(tiny_tokenizer, [*TWO[:2], {**TWO[2], "weight": 0}, TWO[3]], CHATML, train_on="all")
    assert found == [
        "user\na?<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
        "<|im_start|>assistant\nd<|im_end|>\n",
    ]


@pytest.mark.parametrize("value", [0.5, "false", 2, -1, [0]])
def test_a_mask_that_is_neither_0_nor_1_is_refused(value):
    reason = recognise(["messages"], {}).content({"messages": [TWO[0], {**TWO[1], "weight": value}]}, 0)
    assert reason == f"`weight` of a turn is {value!r}, but a turn is in the loss (1, true) or not (0, false)"


def test_masks_of_conversations_and_rows_without_a_scored_turn(tmp_path, tiny_tokenizer, section):
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b", "train": False}]
    rows = [
        {"conversations": [*turns, {"from": "human", "value": str(n)}, {"from": "gpt", "value": "d"}]} for n in range(4)
    ]
    rows.append({"conversations": turns})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load_unvalidated_corpus(section(file, held_out=1), tiny_tokenizer).report
    assert report.train.answer_tokens + report.held_out.answer_tokens == 4 * len(
        tiny_tokenizer("d<|im_end|>")["input_ids"]
    )
    assert list(report.dropped) == ["each answer is excluded from the loss by the row"]


def test_one_source_may_have_rows_of_messages_and_of_conversations(tmp_path, tiny_tokenizer, section):
    sharegpt = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    for rows in (
        [{"messages": TWO[:2]}, {"conversations": sharegpt}, {"messages": None, "conversations": sharegpt}],
        [{"conversations": sharegpt}, {"messages": TWO[:2]}, {"conversations": None, "messages": TWO[:2]}],
    ):
        columns = recognise(list(rows[0]), {})
        found = [columns.content(row, number) for number, row in enumerate(rows)]
        assert [content.values["messages"] for content in found] == [TWO[:2]] * 3
    mapped = recognise(["messages", "conversations"], {"messages": "conversations"})
    assert mapped.content({"messages": TWO, "conversations": None}, 0) == "no messages"

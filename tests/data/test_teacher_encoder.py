"""Texts for a teacher with its own template: expected prompts are written by hand, answers are the student's tokens."""

import numpy as np
import pytest

from neoplug.data.encode.faults import CHANGES_EARLIER_TEXT
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.encode.teacher_encoder import KEY, TeacherEncoder
from neoplug.data.ingest.columns import recognise
from neoplug.errors import RecipeError

from .test_chat import FORGETFUL, THOUGHTS, TURNS

TULU = (  # other headers and end tokens, a system prompt in front, content without surrounding whitespace
    "You are wise.\n{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
MERGING = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def read(tokenizer, row, student=None, teacher=None, train_on="answers", refused=pytest.fail):
    contents = [recognise(list(row), {}).content(row, 0)]
    maker = RowEncoder(tokenizer, student, train_on, TeacherEncoder(tokenizer, teacher))
    return next(maker.encode(contents, refused), None)


def texts(tokenizer, row):
    """Return the teacher's text with its answers in brackets; assert that their tokens are the student's."""
    ids, scored = row.teacher_ids, row.teacher_loss_mask
    assert ids[scored].tolist() == row.input_ids[row.loss_mask].tolist()
    marked, before = "", False
    for token, now in zip([*ids.tolist(), None], [*scored.tolist(), False], strict=True):
        marked += "]" if before and not now else "[" if now and not before else ""
        marked += "" if token is None else tokenizer.decode([token])
        before = now
    return marked


@pytest.mark.parametrize("train_on", ["answers", "last"])
@pytest.mark.parametrize("template", [None, MERGING])
def test_a_teacher_with_the_students_template_reads_what_the_student_reads(tiny_tokenizer, template, train_on):
    row = read(tiny_tokenizer, {"messages": TURNS}, template, template, train_on)
    assert row.teacher_ids.tolist() == row.input_ids.tolist()
    assert row.teacher_loss_mask.tolist() == row.loss_mask.tolist()


def test_the_teachers_prompts_surround_the_students_answers(tiny_tokenizer):
    messages = [*TURNS[:3], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": " Yes."}]
    opening = "You are wise.\n<system>\nBe brief.\n<user>\nWhat is 2 + 2?\n<assistant>\n"
    row = read(tiny_tokenizer, {"messages": messages}, None, TULU)
    expected = opening + "[It is 4.<|im_end|>]\n<user>\nSure?\n<assistant>\n[ Yes.<|im_end|>]\n"
    assert texts(tiny_tokenizer, row) == expected
    last = read(tiny_tokenizer, {"messages": messages}, None, TULU, "last")
    expected = opening + "It is 4.<|endoftext|>\n<user>\nSure?\n<assistant>\n[ Yes.<|im_end|>]\n"
    assert texts(tiny_tokenizer, last) == expected


def test_the_part_of_an_answer_in_the_students_prompt_is_in_the_teachers_prompt_too(tiny_tokenizer):
    """The student's header ends in a space, which is in one token with the answer's first letters."""
    messages = [TURNS[1], {"role": "assistant", "content": "the end"}]
    row = read(tiny_tokenizer, {"messages": messages}, MERGING, None)
    assert tiny_tokenizer.decode(row.input_ids[row.loss_mask]) == " end<|im_end|>"  # precondition of this test
    assert texts(tiny_tokenizer, row).endswith("<|im_start|>assistant\nthe[ end<|im_end|>]\n")
    back = read(tiny_tokenizer, {"messages": messages}, None, MERGING)
    assert texts(tiny_tokenizer, back) == "user: What is 2 + 2?<|im_end|>assistant: [the end<|im_end|>]"


SPOKEN = MERGING.replace("<|im_end|>", "</s>")


def test_alpaca_rows_are_conversations_for_a_teacher_with_a_template(llama_tokenizer):
    row = read(llama_tokenizer, {"instruction": "add", "input": "1 1", "output": "two it is"}, None, SPOKEN)
    assert llama_tokenizer.decode(row.input_ids).startswith("<s> Below is an instruction")
    assert llama_tokenizer.decode(row.teacher_ids) == "user: add\n\n1 1</s> assistant: two it is</s>"
    assert llama_tokenizer.decode(row.teacher_ids[row.teacher_loss_mask]) == "two it is</s>"


def test_a_prompt_is_tokenised_separately_where_a_token_spans_its_end(llama_tokenizer):
    """The teacher reads the prompt as generation does, without the space that this kind of tokenizer adds to texts."""
    messages = [TURNS[1], {"role": "assistant", "content": "the one"}] * 2
    row = read(llama_tokenizer, {"messages": messages}, SPOKEN.replace(": ", ":|"), SPOKEN)
    pieces = llama_tokenizer.convert_ids_to_tokens(row.teacher_ids)
    whole = llama_tokenizer.tokenize("assistant: the one", add_special_tokens=False)
    assert "▁the" in whole  # precondition of this test
    assert "".join(pieces).replace("<unk>", "?") == "▁user:▁What▁is▁2▁+▁2?</s>▁assistant:▁the▁one</s>" * 2
    assert [pieces[at - 1] for at in np.flatnonzero(row.teacher_loss_mask[1:] & ~row.teacher_loss_mask[:-1]) + 1] == [
        "▁"
    ] * 2


def test_a_header_inside_a_turns_span_belongs_to_the_prompt(tiny_tokenizer):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
    row = read(tiny_tokenizer, {"messages": TURNS[1:]}, None, template)
    expected = "<user>What is 2 + 2?<|im_end|><assistant>[It is 4.<|im_end|>]<user>Sûr? 漢字<|im_end|><assistant>"
    whole = tiny_tokenizer.decode(row.teacher_ids)
    assert whole == expected.replace("[", "").replace("]", "") + "\n\nYes, naïve one 漢字.<|im_end|>"
    assert row.teacher_ids[row.teacher_loss_mask].tolist() == row.input_ids[row.loss_mask].tolist()


def test_only_conversations_have_a_teacher_text(tiny_tokenizer):
    for row in ({"text": "a b c"}, {"prompt": "a", "completion": " b"}):
        assert read(tiny_tokenizer, row, None, TULU).teacher_ids is None


def test_mixed_kinds_keep_the_order_of_rows(tiny_tokenizer):
    rows = [{"text": "a"}, {"messages": TURNS}, {"prompt": "a", "completion": "b"}, {"text": "b"}]
    contents = [recognise(list(row), {}).content(row, number) for number, row in enumerate(rows)]
    found = list(RowEncoder(tiny_tokenizer, None, "answers").encode(contents, pytest.fail))
    assert [row.row for row in found] == [0, 1, 2, 3]
    for content, row in zip(contents, found, strict=True):
        (alone,) = RowEncoder(tiny_tokenizer, None, "answers").encode([content], pytest.fail)
        assert np.array_equal(alone.input_ids, row.input_ids)


def test_rows_that_the_teachers_template_cannot_render_are_dropped_with_a_reason(tiny_tokenizer):
    said = []
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TULU
    blind = "{% for m in messages %}{% if loop.last %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    for template in (strict, blind + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"):
        assert read(tiny_tokenizer, {"messages": TURNS}, None, template, refused=lambda *why: said.append(why)) is None
    assert said == [
        (0, "refused by the teacher's chat template: no system here"),
        (0, "2 answers, of which the teacher's template renders 1"),
    ]


def test_a_row_whose_teacher_text_starts_with_an_answer_is_dropped_with_a_reason(tiny_tokenizer):
    reasons = []
    messages = [{"role": "assistant", "content": "Hello."}, *TURNS[1:]]
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    row = read(tiny_tokenizer, {"messages": messages}, None, template, refused=lambda *why: reasons.append(why))
    assert row is None
    assert reasons == [(0, "the teacher's template has no text before the first answer")]
    row = read(tiny_tokenizer, {"messages": messages}, None, "<|im_end|>" + template)
    assert texts(tiny_tokenizer, row).startswith("<|im_end|>[Hello.<|im_end|>]What is 2 + 2?")


def test_errors_of_the_teachers_template_have_its_key_in_the_recipe(tiny_tokenizer, llama_tokenizer):
    with pytest.raises(RecipeError, match="the teacher's tokenizer has no chat template") as caught:
        TeacherEncoder(llama_tokenizer, None)
    assert caught.value.problems[0].path == KEY
    dropped = []
    read(tiny_tokenizer, {"messages": THOUGHTS}, None, FORGETFUL, refused=lambda *why: dropped.append(why))
    assert dropped == [(0, f"the teacher's chat template {CHANGES_EARLIER_TEXT}")]
    with pytest.raises(RecipeError, match=r"is not valid Jinja: (?s:.*)line 2 is '\{% for m in %\}'") as caught:
        TeacherEncoder(tiny_tokenizer, "Hello\n{% for m in %}")
    assert caught.value.problems[0].path == KEY

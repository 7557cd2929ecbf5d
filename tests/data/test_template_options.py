"""`chat_template_kwargs` of a recipe or of a row reach the chat template as transformers passes them."""

import json

import pytest

from neoplug.data import load_corpus
from neoplug.data.encode.differences import Templates, differences
from neoplug.errors import RecipeError

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = "{% if enable_thinking is defined and not enable_thinking %}/no_think {{ effort }}\n{% endif %}" + TURNS
OPTIONS = {"enable_thinking": False, "effort": "low"}


def rows_of(count, **columns):
    return [
        {"messages": [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": f"b{n}"}], **columns}
        for n in range(count)
    ]


@pytest.fixture
def texts(tmp_path, section, tiny_tokenizer):
    """Return a function from rows and settings to the texts of all documents, sorted."""

    def of(rows, **settings):
        file = tmp_path / "a.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = section(file, **{"held_out": 1, "packing": False, "chat_template": THINKING} | settings)
        corpus = load_corpus(data, tiny_tokenizer)
        documents = [*(row[0] for row in corpus.rows), *corpus.held_out]
        return sorted(tiny_tokenizer.decode(document.input_ids) for document in documents)

    return of


def rendered(tokenizer, rows, **options):
    texts = (
        tokenizer.apply_chat_template(row["messages"], chat_template=THINKING, tokenize=False, **options)
        for row in rows
    )
    return sorted(text.removesuffix("\n") + "\n" for text in texts)


def test_the_recipes_options_reach_the_template(texts, tiny_tokenizer):
    rows = rows_of(4)
    assert texts(rows, chat_template_kwargs=OPTIONS) == rendered(tiny_tokenizer, rows, **OPTIONS)
    assert texts(rows) == rendered(tiny_tokenizer, rows)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_rows_options_come_before_the_recipes(texts, tiny_tokenizer, as_text):
    own = {"effort": "high"}
    rows = rows_of(4, chat_template_kwargs=json.dumps(own) if as_text else own)
    assert texts(rows, chat_template_kwargs=OPTIONS) == rendered(tiny_tokenizer, rows, **OPTIONS | own)


def test_alpaca_rows_have_them_too(texts):
    rows = [{"instruction": f"a{n}", "output": "b"} for n in range(4)]
    assert all(text.startswith("/no_think low") for text in texts(rows, chat_template_kwargs=OPTIONS))


def test_options_do_not_change_which_rows_are_held_out(tmp_path, section, tiny_tokenizer):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(20)))
    held_out = []
    for options in ({}, OPTIONS):
        data = section(file, held_out=4, packing=False, chat_template=THINKING, chat_template_kwargs=options)
        held_out.append(sorted(document.row for document in load_corpus(data, tiny_tokenizer).held_out))
    assert held_out[0] == held_out[1]


def test_an_option_that_the_template_does_not_read_is_refused(texts):
    with pytest.raises(RecipeError) as caught:
        texts(rows_of(4), chat_template_kwargs={"enable_thinkin": False})
    (problem,) = caught.value.problems
    assert problem.what == "the chat template has no option `enable_thinkin`; did you mean `enable_thinking`?"
    assert problem.fix == "its options are effort, enable_thinking"
    assert problem.path == ("data", "chat_template_kwargs", "enable_thinkin")


def test_what_the_rows_give_is_no_option(texts):
    with pytest.raises(RecipeError, match="`tools` is no option of a chat template"):
        texts(rows_of(4), chat_template_kwargs={"tools": []})


def test_options_of_a_row_that_are_no_object_are_a_fault(texts):
    with pytest.raises(RecipeError, match="chat_template_kwargs is list, not an object"):
        texts([*rows_of(2), *rows_of(1, chat_template_kwargs=[1])])


def test_they_are_options_of_the_comparison_with_the_teachers_template(tiny_tokenizer):
    templates = Templates(THINKING, TURNS)
    assert differences(tiny_tokenizer, tiny_tokenizer, templates) == []
    teacher = Templates(THINKING, None, OPTIONS)
    (line,) = differences(tiny_tokenizer, tiny_tokenizer, teacher)
    assert "/no_think low" in line

"""Text with tokens that a model has no row for is refused, and the model that lacks the row is named."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import neoplug
from neoplug.errors import RecipeError
from neoplug.testing.families import make


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the models `whole`, and `short`: the same with a tokenizer of one token more than rows."""
    for name in ("whole", "short"):
        make("llama", tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "short")
    rows = AutoConfig.from_pretrained(tmp_path / "short").vocab_size
    tokenizer.add_tokens([f"<filler{number}>" for number in range(rows - len(tokenizer))] + ["<extra>", "<more>"])
    tokenizer.save_pretrained(tmp_path / "short")
    return tmp_path


def problem_of(folder, text, student, teacher, **of_teacher):
    rows = [
        {"messages": [{"role": "user", "content": text.format(n)}, {"role": "assistant", "content": "b"}]}
        for n in range(4)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "teacher": {"model": str(folder / teacher), **of_teacher},
        "student": {"model": str(folder / student)},
        "adapter": {"lora": {"r": 2}},
        "loss": {"forward_kl": {}},
        "data": {"source": str(folder / "a.jsonl"), "held_out": 1},
        "train": {"max_steps": 1},
        "output_dir": str(folder / "out"),
    }
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError) as caught:
        neoplug.run(folder / "mine.yaml")
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("teacher", ["short", "whole"])
def test_a_token_beyond_the_students_rows_blames_the_student(folder, teacher):
    rows = AutoConfig.from_pretrained(folder / "short").vocab_size
    problem = problem_of(folder, "a{}<extra>", "short", teacher)
    assert problem.what == f"the text has 1 token beyond the {rows:,} rows of the student: '<extra>' ({rows})"
    assert problem.why == f"the ids of its own tokenizer go to {rows + 1:,}, the rows of the model to {rows - 1:,}"
    assert problem.fix.startswith("resize the model to its tokenizer (`resize_token_embeddings`) and save it")
    assert problem.path == ("student", "model")


def test_two_tokens_are_counted_in_the_plural(folder):
    assert "2 tokens beyond" in problem_of(folder, "a{}<extra><more>", "short", "short").what


def test_a_token_that_only_the_teacher_reads_blames_the_teacher(folder):
    template = "<extra>{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    problem = problem_of(folder, "a{}", "whole", "short", chat_template=template)
    assert "1 token beyond" in problem.what
    assert problem.path == ("teacher", "model")


def test_a_token_that_the_teachers_tokenizer_lacks_is_one_of_the_vocabulary(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "short")
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model.save_pretrained(folder / "short")
    problem = problem_of(folder, "a{}<extra>", "short", "whole")
    assert "1 token that the teacher's vocabulary lacks: '<extra>'" in problem.what
    assert problem.path == ("data", "source")

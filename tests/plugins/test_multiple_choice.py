"""Multiple choice against lm_eval on the same file and model, and against arithmetic by hand."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neoplug.errors import RunError
from neoplug.evaluation.probes import probe
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug_probes.multiple_choice import MultipleChoice, metrics
from neoplug_probes.questions import Question, read_questions

ROWS = [
    {"query": "The sky is", "choices": ["blue", "made of old green cheese", "a number"], "gold": 0},
    {"query": "A statement ends where ", "choices": ["the line ends", "it begins"], "gold": 0},  # a space at the end
    {"query": "Zwei und drei\nsind", "choices": ["fünf", "sechs", "einundzwanzig", "β"], "gold": 1, "source": "mine"},
    {"query": "<|im_start|>user\nWhich?", "choices": ["this one", "that other one"], "gold": 1},
    *({"query": f"Number {n}:", "choices": [str(n), "nothing at all", "no"], "gold": n % 3} for n in range(20)),
]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tasks") / "mine.jsonl", ROWS)


@pytest.fixture(scope="module")
def model(tiny_student):
    return AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_student):
    return AutoTokenizer.from_pretrained(tiny_student)


def evaluated(plugin, model, tokenizer):
    """Evaluate a probe as a run does."""
    whole = language_model(model, head_name(model), Vocabulary(model.config.vocab_size))
    return probe(Plugins({"probes": {"mc": plugin}}), whole, None, [], tokenizer)["mc"]


@pytest.mark.slow
def test_the_metrics_equal_those_of_lm_eval(file, model, tokenizer, peer, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "neoplug_probes.multiple_choice.metrics",
        lambda questions, scores: kept.append(scores) or metrics(questions, scores),
    )
    (found,) = evaluated(MultipleChoice(tasks=file, batch_size=5), model, tokenizer).values()
    theirs = peer(model, tokenizer, file)
    for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
        assert found[metric] == pytest.approx(theirs[metric], abs=1e-12)
    assert found["chosen"] != found["chosen_norm"]  # so that dividing by the length has an effect
    np.testing.assert_allclose(np.concatenate(kept[0]), theirs["log_likelihoods"], atol=1e-4)


def test_metrics_equal_those_computed_by_hand():
    questions = [Question("q", ("a", "bb", "cccc"), 0), Question("q", ("a", "bb"), 1), Question("q", ("aa", "b"), 0)]
    scores = [np.array([-3.0, -2.0, -4.0]), np.array([-1.0, -2.2]), np.array([-1.0, -2.0])]
    found = metrics(questions, scores)
    assert found["acc"] == pytest.approx(1 / 3)
    assert found["acc_norm"] == pytest.approx(1 / 3)  # per character: -3, -1, -1 | -1, -1.1 | -0.5, -2
    assert found["acc_stderr"] == pytest.approx(math.sqrt((2 * (1 / 3) ** 2 + (2 / 3) ** 2) / 2 / 3))
    assert (found["chosen"], found["chosen_norm"]) == ([2, 1, 0], [2, 1, 0])
    assert (found["gold"], found["questions"]) == ([2, 1, 0], 3)
    assert metrics(questions[:1], scores[:1])["acc_stderr"] is None


def test_tasks_have_names_and_limits(file, tmp_path, model, tokenizer):
    other = write(tmp_path / "other.jsonl", ROWS[:1])
    for tasks, names in (([file, other], {"mine", "other"}), ({"x": file}, {"x"})):
        found = evaluated(MultipleChoice(tasks=tasks, limit=2), model, tokenizer)
        assert found.keys() == names
        assert {task["questions"] for task in found.values()} <= {1, 2}
    with pytest.raises(ValueError, match=r"tasks .* two files of one name"):
        MultipleChoice(tasks=[file, file])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"query": "a", "choices": ["b", "c"]', "delimiter"),
        ('["a"]', "it is a list, not a map"),
        ('{"question": "a", "choices": ["b", "c"], "gold": 0}', "it has no `query`, only question, choices, gold"),
        ('{"query": " ", "choices": ["b", "c"], "gold": 0}', "`query` must be text"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "`choices` must be"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "`choices` must be"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "`gold` must be a whole number from 0 to 1"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "`gold` must be"),
    ],
)
def test_rows_that_are_not_questions_are_refused_with_their_line(tmp_path, row, why):
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(ROWS[0])}\n\n{row}\n", encoding="utf-8")
    (problem,) = MultipleChoice(tasks=file).check()
    assert problem.what.startswith(f"{file}, line 3: ")
    assert why in problem.what
    assert problem.fix.startswith("a row is")
    assert len(read_questions(file, limit=1)) == 1


def test_text_longer_than_the_model_is_refused(tmp_path, model, tokenizer):
    long = write(tmp_path / "long.jsonl", [{"query": "a b " * 300, "choices": ["c", "d"], "gold": 0}])
    with pytest.raises(RunError, match=r"tokens together, but the model was made for 512"):
        evaluated(MultipleChoice(tasks=long), model, tokenizer)


def test_tokens_that_are_not_shared_are_refused(tmp_path, model, tokenizer):
    file = write(tmp_path / "rare.jsonl", [{"query": "statement", "choices": ["statement", "x"], "gold": 0}])
    whole = language_model(model, head_name(model), Vocabulary(300))
    with pytest.raises(RunError, match="do not share, as "):
        probe(Plugins({"probes": {"mc": MultipleChoice(tasks=file)}}), whole, None, [], tokenizer)

"""`edit_documents`: both models read what it returns, draws depend on the row alone, and wrong answers are refused."""

import json

import pytest

from neoplug import recipe as recipes
from neoplug.errors import PluginError, RecipeError
from neoplug.runs.preview import preview

EXACT = {"states": {"dtype": "float32"}}
READS = """
from dataclasses import replace
import json
import numpy as np
from neoplug import collate


@dataclass(eq=False)
class Prompts:
    '''Draws a number from `rng` for each row, cuts the prompt so far, and writes both into a file.'''

    file: str

    @hookimpl
    def edit_documents(self, documents, rng):
        draw = int(torch.randint(1 << 40, (), generator=rng))
        with open(self.file, "a") as file:
            file.write(json.dumps([documents[0].row, draw]) + "\\n")
        return [self.cut(document, draw % 9) for document in documents]

    def cut(self, one, tokens):
        start = min(tokens, int(np.flatnonzero(one.loss_mask[1:])[0]))
        text = {"input_ids": one.input_ids[start:], "loss_mask": one.loss_mask[start:]}
        return replace(one, **text, teacher_ids=one.input_ids, teacher_loss_mask=one.loss_mask)


@dataclass(eq=False)
class Rows:
    '''Leaves out the rows with these numbers.'''

    rows: list[int]

    @hookimpl
    def edit_documents(self, documents):
        return [document for document in documents if document.row not in self.rows]
"""
WRONG = """
from dataclasses import replace
import numpy as np


@dataclass(eq=False)
class Wrong:
    kind: str

    @hookimpl
    def edit_documents(self, documents):
        one = documents[0]
        ids, mask = one.input_ids, one.loss_mask
        answers = {
            "none": lambda: None,
            "one": lambda: one,
            "arrays": lambda: [ids],
            "list": lambda: [replace(one, input_ids=ids.tolist())],
            "int32": lambda: [replace(one, input_ids=ids.astype("int32"))],
            "mask": lambda: [replace(one, loss_mask=mask[1:])],
            "empty": lambda: [replace(one, input_ids=ids[:0], loss_mask=mask[:0])],
            "half a teacher": lambda: [replace(one, teacher_ids=ids)],
            "other answers": lambda: [replace(one, teacher_ids=ids, teacher_loss_mask=mask & False)],
            "no token": lambda: [replace(one, input_ids=ids + 100_000)],
            "negative": lambda: [replace(one, teacher_ids=ids * 0 - 1, teacher_loss_mask=mask)],
            "row": lambda: [replace(one, row=777)],
            "long": lambda: [replace(one, input_ids=np.tile(ids, 99), loss_mask=np.tile(mask, 99))],
        }
        return answers[self.kind]()
"""
REFUSED = {
    "none": "with None, where a list of documents is expected",
    "one": "with a Document, where a list of documents is expected",
    "arrays": "where a neoplug.Document is expected in the list",
    "list": "the value `input_ids`, which is a list, where a numpy array [L] of int64 is expected",
    "int32": "of int32, where a numpy array [L] of int64 is expected",
    "mask": "in `loss_mask`",
    "empty": "with a document that has no token in `input_ids`",
    "half a teacher": "`teacher_loss_mask`, which is None",
    "other answers": "answer tokens in a document, and",
    "no token": "in a document, which is no token",
    "negative": "with -1 in a document, which is no token",
    "row": "with a document of row 777",
    "long": "are expected",
}


def written(file):
    return {tuple(json.loads(line)) for line in file.read_text().splitlines()}


@pytest.fixture
def prompts(lab):
    """Return a function that makes the section `treatments`, and the file that it writes."""
    lab.plugin("reads", READS)

    def make(name):
        file = lab.folder / f"{name}.jsonl"
        return {"./reads.py:Prompts": {"file": str(file)}}, file

    return make


def test_draws_and_documents_depend_neither_on_micro_batches_nor_on_their_order(lab, prompts):
    """The same rows a step in micro-batches of four, two and one: the same draws, losses equal but for rounding."""
    found = {}
    for size in (1, 2, 4):
        treatments, file = prompts(f"size-{size}")
        train = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 2}
        run = lab.run(f"run-{size}", train=train, treatments=treatments)
        found[size] = written(file), [line["losses"] for line in run.lines]
        assert run.lines[0]["tokens"] < lab.run(f"plain-{size}", train=train).lines[0]["tokens"]
    assert len(found[1][0]) == 8
    for size in (2, 4):
        assert found[size][0] == found[1][0]
        for ours, theirs in zip(found[size][1], found[1][1], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_rows_that_are_left_out_are_not_trained(lab, drop):
    """The losses are those of the same rows without answer tokens; the tokens are fewer."""
    lab.plugin("reads", READS)
    train = {"max_steps": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2}
    rows = {"rows": [0, 2, 3, 5]}
    out = lab.run("out", train=train, treatments={"./reads.py:Rows": rows})
    unscored = lab.run("unscored", train=train, treatments={drop: rows})
    for ours, theirs in zip(out.lines, unscored.lines, strict=True):
        assert ours["answer_tokens"] == theirs["answer_tokens"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert sum(line["tokens"] for line in out.lines) < sum(line["tokens"] for line in unscored.lines)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_answer_names_the_plugin_the_hook_and_the_fault(lab, kind):
    lab.plugin("wrong", WRONG)
    with pytest.raises(PluginError) as refused:
        lab.run("run", treatments={"./wrong.py:Wrong": {"kind": kind}})
    message = str(refused.value)
    assert REFUSED[kind] in message
    assert "`./wrong.py:Wrong`" in message
    assert "`edit_documents`" in message
    assert "wrong.py:" in message


@pytest.mark.parametrize("treatment", [{"truncated_context": {"tokens": 3}}, {"data_fraction": {"fraction": 0.5}}])
def test_edits_of_the_students_text_give_the_numbers_of_the_live_run_with_a_cache(lab, home, treatment):
    # Bit for bit only where the teacher's batches are those of the build: one row, without padding. An empty cache,
    # since the records of another test may be of other batches.
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    live = lab.run("live", treatments=treatment, train=train)
    assert live.facts != lab.run("plain", train=train).facts
    assert lab.run("cached", teacher={"cache": EXACT}, treatments=treatment, train=train).facts == live.facts


def test_another_text_for_the_teacher_is_refused_with_a_cache(lab):
    with pytest.raises(RecipeError, match="`teacher_noise` cannot be combined with a cache"):
        lab.run("noise", teacher={"cache": EXACT}, treatments={"teacher_noise": {"probability": 0.1}})
    lab.plugin("swaps", """
    from dataclasses import replace

    @dataclass(eq=False)
    class Swaps:
        @hookimpl
        def edit_documents(self, documents):
            return [replace(one, teacher_ids=one.input_ids[::-1].copy(), teacher_loss_mask=one.loss_mask)
                    for one in documents]
    """)  # fmt: skip
    with pytest.raises(PluginError, match="changed the text that the teacher reads") as refused:
        lab.run("swaps", teacher={"cache": EXACT}, treatments={"./swaps.py:Swaps": {}})
    assert "leave `teacher.cache` out" in str(refused.value)


def test_noise_in_the_teachers_text_changes_its_losses_alone(lab):
    """Before the first update, cross-entropy is that of the plain run, and forward KL is not."""
    noise, plain = lab.run("noise", treatments={"teacher_noise": {"probability": 0.5}}), lab.run("plain")
    ours, theirs = noise.lines[0]["losses"], plain.lines[0]["losses"]
    assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], rel=1e-5)
    assert ours["forward_kl"] != pytest.approx(theirs["forward_kl"], rel=0.01)


def test_noise_without_a_teacher_is_refused(lab):
    with pytest.raises(RecipeError, match="the recipe has no teacher"):
        lab.run("run", teacher=None, loss={"cross_entropy": {}}, treatments={"teacher_noise": {"probability": 0.1}})


def test_a_preview_shows_the_texts_of_both_models_and_what_is_left_out(lab):
    lab.plugin("reads", READS)
    shown = preview(recipes.load(lab.recipe("short", treatments={"truncated_context": {"tokens": 1}})), rows=2)
    for row in shown.rows:
        (document,) = row.documents
        student, teacher = ("".join(text for text, _ in found) for found in (document.student, document.teacher))
        assert teacher.endswith(student)
        assert len(teacher) > len(student)
        assert row.changes[0].startswith("the document has ")
    noisy = preview(recipes.load(lab.recipe("noisy", treatments={"teacher_noise": {"probability": 0.5}})), rows=2)
    assert [row.changes for row in noisy.rows] == [["the teacher reads another text"]] * 2
    none = {"./reads.py:Rows": {"rows": list(range(99))}}
    assert all(row.emptied for row in preview(recipes.load(lab.recipe("none", treatments=none)), rows=2).rows)

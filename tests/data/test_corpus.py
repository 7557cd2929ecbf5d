"""A data section becomes a corpus: every dropped row is reported, no evaluation row is trained on."""

import json

import numpy as np
import pytest

from neoplug.data import load_corpus, load_unvalidated_corpus
from neoplug.data.preview_text import pieces
from neoplug.errors import RecipeError


def jsonl(folder, rows, name="rows.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows_of(documents):
    return {document.row for document in documents}


def test_packed_conversations_have_the_tokens_of_apply_chat_template(tiny_chat, tiny_tokenizer, section):
    corpus = load_corpus(section(tiny_chat), tiny_tokenizer)
    trained = [document for row in corpus.rows for document in row]
    assert len(rows_of(trained)) == 23
    assert rows_of(trained) | rows_of(corpus.held_out) == set(range(24))
    assert len(corpus.held_out) == 1
    assert all(sum(map(len, row)) <= 128 for row in corpus.rows)
    rows = [json.loads(line)["messages"] for line in tiny_chat.read_text(encoding="utf-8").splitlines()]
    for document in [*trained, *corpus.held_out]:
        expected = tiny_tokenizer.apply_chat_template(rows[document.row], return_dict=True)["input_ids"]
        assert document.input_ids.tolist() == expected[:128]
        answers = "".join(m["content"] + "<|im_end|>" for m in rows[document.row] if m["role"] == "assistant")
        assert answers.startswith(tiny_tokenizer.decode(document.input_ids[document.loss_mask]))


def test_unpacked_rows_have_one_document_each_and_the_same_tokens_as_packed_ones(tiny_chat, tiny_tokenizer, section):
    packed = load_corpus(section(tiny_chat), tiny_tokenizer)
    loose = load_corpus(section(tiny_chat, packing=False), tiny_tokenizer)
    assert all(len(row) == 1 for row in loose.rows)
    by_row = {row[0].row: row[0].input_ids.tolist() for row in loose.rows}
    assert by_row == {document.row: document.input_ids.tolist() for row in packed.rows for document in row}


def test_every_token_of_plain_text_is_in_the_loss(tiny_tokenizer, section):
    from pydoc_data.topics import topics

    corpus = load_corpus(section("python:pydoc_data.topics", max_length=200), tiny_tokenizer)
    scored = sum(
        len(tiny_tokenizer(text, verbose=False)["input_ids"]) for text in topics.values()
    )  # the first token is not in the loss, the end token is
    sides = corpus.report.train, corpus.report.held_out
    assert sum(side.answer_tokens for side in sides) == scored
    assert [side.rows for side in sides] == [len(topics) - 3, 3]
    assert corpus.report.fill > 0.98


def test_the_windows_of_a_text_join_to_the_text(tiny_tokenizer, section):
    from pydoc_data.topics import topics

    corpus = load_corpus(section("python:pydoc_data.topics", max_length=200, packing=False), tiny_tokenizer)
    documents = [*(row[0] for row in corpus.rows), *corpus.held_out]
    for number, text in enumerate(topics.values()):
        first, *others = [document for document in documents if document.row == number]
        ids = np.concatenate([first.input_ids, *(document.input_ids[1:] for document in others)])
        assert tiny_tokenizer.decode(ids) == text + "<|im_end|>"


def test_what_is_cut_broken_or_dropped_is_counted(tmp_path, tiny_tokenizer, section):
    def chat(question, answer):
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    rows = [chat(f"question {n}", f"answer {n}") for n in range(40)]
    rows += [chat("short", "long " * 100), chat("long " * 100, "short")]
    rows += [{"messages": None}, {"messages": []}, {"messages": [{"role": "user", "content": "alone"}]}]
    evaluation = jsonl(tmp_path, rows[:2], "eval.jsonl")
    data = section(jsonl(tmp_path, rows), max_length=64, eval_source=str(evaluation), max_dropped_rows=0.1)
    report = load_corpus(data, tiny_tokenizer).report
    train, held = report.train, report.held_out
    lost = tiny_tokenizer.apply_chat_template(rows[40]["messages"], return_dict=True)["input_ids"]
    assert train.rows == 42
    assert train.documents == 41
    assert train.rows_cut == 2
    assert train.rows_without_answer == 1
    short = len(tiny_tokenizer("short<|im_end|>")["input_ids"])
    assert train.answer_tokens_lost == len(lost) - 1 - 64 + short
    assert {why: dropped.first for why, dropped in report.dropped.items()} == {
        "no messages": [42, 43],
        "no assistant turn, only user": [44],
    }
    assert report.leaked == 2
    assert report.lines() == [
        f"data: 45 rows of {data.source} (messages)",
        "data: 2 evaluation rows",
        "data: 2 rows dropped, no messages (rows 42, 43)",
        "data: 1 row dropped, no assistant turn, only user (row 44)",
        "data: 2 evaluation rows are also in the training rows",
        f"training: 42 rows, 41 documents, {train.tokens:,} tokens, {train.answer_tokens:,} of them scored",
        f"training: 2 rows cut at max_length 64, {train.answer_tokens_lost} answer tokens lost",
        "training: 1 row dropped, no answer token left",
        f"held out: 2 rows, 2 documents, {held.tokens} tokens, {held.answer_tokens} of them scored",
        f"training: packed into {report.packed_rows} rows, {report.fill:.1%} full",
    ]
    assert json.loads(json.dumps(report.as_dict()))["dropped"] == {"no messages": 2, "no assistant turn, only user": 1}


def test_rows_that_the_template_cannot_render_are_counted(tmp_path, tiny_tokenizer, section):
    template = "{% if messages[0]['content'] == 'x' %}{{ raise_exception('no x') }}{% endif %}" + (
        tiny_tokenizer.chat_template
    )
    rows = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word}]} for word in "abcx"
    ]
    file = tmp_path / "chat.jinja"
    file.write_text(template, encoding="utf-8")
    evaluation = str(jsonl(tmp_path, rows[:1], "e.jsonl"))
    data = section(jsonl(tmp_path, rows), chat_template=str(file), eval_source=evaluation, max_dropped_rows=0.25)
    assert load_corpus(data, tiny_tokenizer).report.dropped["refused by the chat template: no x"].first == [3]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"text": ""}, {"text": None}],
            "all 2 rows are broken\nwhy: data: 1 row dropped, empty text (row 0); data: 1",
        ),
        ([{"txt": "a"}], "the columns match no kind of row; `txt`: did you mean `text`?"),
        (
            [{"prompt": "long " * 200, "completion": "a"}] * 2 + [{"prompt": "a", "completion": "b"}],
            "fix: set a larger data.max_length",
        ),
        ([], "has no rows"),
    ],
)
def test_data_without_a_usable_row_is_refused(tmp_path, tiny_tokenizer, section, rows, said):
    with pytest.raises(RecipeError) as caught:
        load_corpus(section(jsonl(tmp_path, rows), held_out=1), tiny_tokenizer)
    assert said in str(caught.value)
    assert caught.value.problems[0].path in (("data", "source"), ("data", "columns"))


def faulty(broken, whole):
    rows = [{"prompt": f"question {n}", "completion": f" answer {n}"} for n in range(whole)]
    return rows + [{"prompt": f"question {n}", "completion": "" if n % 2 else None} for n in range(broken)]


@pytest.mark.parametrize(
    ("allowed", "broken", "eval_broken", "refused"),
    [
        (0.0, 1, 0, ["source"]), (0.1, 2, 2, []), (0.1, 3, 0, ["source"]), (0.1, 0, 3, ["eval_source"]),
        (0.1, 3, 3, ["source", "eval_source"]), (1.0, 18, 0, []),
    ],
)  # fmt: skip
def test_more_dropped_rows_than_allowed_end_the_run(
    tmp_path, tiny_tokenizer, section, allowed, broken, eval_broken, refused
):
    """The training and the evaluation source have 20 rows each."""
    source = jsonl(tmp_path, faulty(broken, 20 - broken))
    evaluation = jsonl(tmp_path, faulty(eval_broken, 20 - eval_broken), "evaluation.jsonl")
    data = section(source, eval_source=str(evaluation), max_dropped_rows=allowed)
    if not refused:
        load_corpus(data, tiny_tokenizer)
        return
    with pytest.raises(RecipeError) as caught:
        load_corpus(data, tiny_tokenizer)
    assert [problem.path[1] for problem in caught.value.problems] == refused
    assert f"at most {allowed:.1%} may be" in str(caught.value)
    assert "dropped, no completion" in str(caught.value)
    lost = load_unvalidated_corpus(data, tiny_tokenizer).report.read[""].lost()
    assert sum(dropped.rows for dropped in lost.values()) == broken


def test_a_row_without_an_answer_after_cutting_counts_as_dropped(tmp_path, tiny_tokenizer, section):
    rows = [*faulty(0, 9), {"prompt": "long " * 90, "completion": "short"}]
    with pytest.raises(RecipeError, match=r"1 of the 10 rows .* are dropped \(10\.0%\)"):
        load_corpus(section(jsonl(tmp_path, rows), max_length=64), tiny_tokenizer)


def test_kinds_of_rows_may_be_mixed_and_are_counted(tmp_path, tiny_tokenizer, section):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": talk}, {"prompt": "a", "completion": "b"}, {"text": "a b"}] * 4 + [{"label": 7}]
    report = load_corpus(section(jsonl(tmp_path, rows), max_dropped_rows=0.1), tiny_tokenizer).report
    assert {kind: tally.rows for kind, tally in report.kinds.items()} == {"messages": 4, "completion": 4, "text": 4}
    assert sum(tally.tokens for tally in report.kinds.values()) == report.train.tokens + report.held_out.tokens
    assert report.dropped["no messages"].excerpt == '{"label": 7}'
    assert any(line.startswith("data: 4 rows of prompt + completion, ") for line in report.lines())


EVALUATION = {
    "completion": [{"prompt": "1 + 1 = ", "completion": "2"}, {"prompt": "2 + 2 = ", "completion": "4"}],
    "alpaca": [{"instruction": "Add 1 and 1.", "output": "2"}, {"instruction": "Add.", "input": "2, 2", "output": "4"}],
    "text": [{"text": "1 + 1 = 2"}, {"text": "2 + 2 = 4"}],
}


@pytest.mark.parametrize("kind", EVALUATION)
def test_evaluation_rows_may_be_of_any_kind(tmp_path, tiny_chat, tiny_tokenizer, section, kind):
    rows = EVALUATION[kind]
    own = jsonl(tmp_path, [*rows, {"other": 1}], "own.jsonl")
    corpus = load_corpus(section(tiny_chat, eval_source=str(own), max_dropped_rows=0.5), tiny_tokenizer)
    assert len(corpus.held_out) == 2
    for row, document in zip(rows, corpus.held_out, strict=True):
        scored = tiny_tokenizer.decode(document.input_ids[document.loss_mask])
        assert scored.endswith(list(row.values())[-1][1:] + "<|im_end|>")
    assert corpus.report.leaked == 0
    assert [(why, found.first) for why, found in corpus.report.dropped.items()] == [
        (
            f"no {'instruction' if kind == 'alpaca' else 'prompt' if kind == 'completion' else 'text'} in eval_source",
            [2],
        )
    ]
    leaking = load_corpus(
        section(jsonl(tmp_path, [*rows, rows[0]]), eval_source=str(own), max_dropped_rows=0.5), tiny_tokenizer
    )
    assert leaking.report.leaked == 2
    assert "data: 2 evaluation rows are also in the training rows" in leaking.report.lines()


@pytest.mark.slow
def test_a_line_of_a_megabyte_is_read_as_one_row(tmp_path, tiny_tokenizer, section):
    long = "word " * 210_000
    rows = [
        {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": long}]},
        {"text": long},
    ]
    rows += [{"text": f"short {n}"} for n in range(4)]
    corpus = load_corpus(section(jsonl(tmp_path, rows), held_out=1, packing=False), tiny_tokenizer)
    report, documents = corpus.report, [*(row[0] for row in corpus.rows), *corpus.held_out]
    assert [len(document) for document in documents if document.row == 0] == [128]
    answer = len(tiny_tokenizer(long + "<|im_end|>")["input_ids"])
    assert report.train.answer_tokens_lost == answer - documents[0].answer_tokens
    windows = [document for document in documents if document.row == 1]
    assert sum(document.answer_tokens for document in windows) == len(tiny_tokenizer(long)["input_ids"])
    assert report.lines()[-1].endswith("in windows of 128 tokens") or report.train.rows_in_windows == 1


def test_the_held_out_rows_do_not_depend_on_the_order_of_rows(tmp_path, tiny_tokenizer, section):
    rows = [{"prompt": f"question {n}", "completion": f" answer {n}"} for n in range(60)]
    held = []
    for name, some in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        corpus = load_corpus(section(jsonl(tmp_path, some, name), held_out=5), tiny_tokenizer)
        held.append(sorted(tiny_tokenizer.decode(document.input_ids) for document in corpus.held_out))
    assert held[0] == held[1]
    assert len(held[0]) == 5


def test_the_fingerprint_depends_on_tokens_masks_and_bounds(tiny_chat, tiny_tokenizer, section):
    corpus = load_corpus(section(tiny_chat), tiny_tokenizer)
    assert load_corpus(section(tiny_chat), tiny_tokenizer).fingerprint == corpus.fingerprint
    others = [section(tiny_chat, **change) for change in ({"train_on": "all"}, {"packing": False}, {"held_out": 2})]
    prints = {load_corpus(other, tiny_tokenizer).fingerprint for other in others}
    assert len(prints | {corpus.fingerprint}) == 4


def test_loading_does_not_change_the_tokenizer(tiny_chat, trimming_tokenizer, section, tiny_tokenizer):
    before = trimming_tokenizer.backend_tokenizer.to_str()
    load_corpus(section(tiny_chat, chat_template=tiny_tokenizer.chat_template), trimming_tokenizer)
    assert trimming_tokenizer.backend_tokenizer.to_str() == before


def test_local_files_are_read_without_network(tiny_chat, tiny_tokenizer, section, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))
    load_corpus(section(tiny_chat), tiny_tokenizer)


def test_preview_shows_the_tokens_and_loss_masks_that_are_trained_on(tiny_chat, tiny_tokenizer, section):
    corpus = load_corpus(section(tiny_chat), tiny_tokenizer)
    for document in (document for row in corpus.rows[:2] for document in row):
        shown = list(pieces(document, tiny_tokenizer))
        assert "".join(text for text, _ in shown) == tiny_tokenizer.decode(document.input_ids)
        scored = "".join(text for text, scored in shown if scored)
        assert scored == tiny_tokenizer.decode(document.input_ids[document.loss_mask])


def test_preview_keeps_characters_and_spaces_intact(tmp_path, tiny_tokenizer, llama_tokenizer, section):
    texts = ["naïve 漢字 end", "the value is", "two"]
    for tokenizer in (tiny_tokenizer, llama_tokenizer):
        data = section(jsonl(tmp_path, [{"text": text} for text in texts]), packing=False, held_out=1)
        corpus = load_corpus(data, tokenizer)
        for (document,) in corpus.rows:
            text = "".join(text for text, _ in pieces(document, tokenizer))
            assert text == tokenizer.decode(document.input_ids)
            assert "�" not in text

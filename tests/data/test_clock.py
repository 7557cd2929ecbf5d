"""Chat templates that read the clock: the date is fixed by the recipe, or is the day of the run."""

import json
from datetime import date, timedelta

import pytest
from pydantic import ValidationError

from neoplug.data import load_corpus
from neoplug.data.encode import clock
from neoplug.data.encode.chat import ChatTemplate
from neoplug.data.encode.clock import pinned_clock, reads_clock

DATED = (
    "Today is {{ strftime_now('%d %B %Y %H:%M') }}.\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": str(n)}, TURNS[1]]} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def first_text(corpus, tokenizer):
    return tokenizer.decode(corpus.held_out[0].input_ids.tolist())


@pytest.mark.parametrize("marked", [False, True])
def test_a_template_reads_the_pinned_date(tiny_tokenizer, marked):
    template = (
        DATED.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}") if marked else DATED
    )
    rendered = ChatTemplate(tiny_tokenizer, template, day="2024-02-29").render(TURNS, "answers")
    assert rendered.text.startswith("Today is 29 February 2024 00:00.\n<|im_start|>user\na?")
    now = tiny_tokenizer.apply_chat_template(TURNS, chat_template=template, tokenize=False)
    assert now.startswith(f"Today is {date.today():%d %B %Y}")  # the clock of others is unchanged


def test_the_clock_runs_again_after_an_exception(tiny_tokenizer):
    with pytest.raises(KeyError), pinned_clock("2024-02-29"):
        raise KeyError
    assert "2024" not in tiny_tokenizer.apply_chat_template(TURNS, chat_template=DATED, tokenize=False)


def test_which_templates_read_the_clock(tiny_tokenizer):
    assert reads_clock(DATED)
    assert reads_clock({"default": "{{ messages }}", "tool_use": DATED})
    assert not reads_clock(tiny_tokenizer.chat_template)
    assert not reads_clock(None)


def test_the_date_is_part_of_the_text_and_of_the_cache_key(chats, tiny_tokenizer, section):
    corpora = {
        day: load_corpus(section(chats, held_out=1, chat_template=DATED, chat_template_date=day), tiny_tokenizer)
        for day in ("2024-02-29", "2025-12-31", "2024-02-29")
    }
    assert first_text(corpora["2024-02-29"], tiny_tokenizer).startswith("Today is 29 February 2024")
    assert first_text(corpora["2025-12-31"], tiny_tokenizer).startswith("Today is 31 December 2025")
    assert {day: corpus.day for day, corpus in corpora.items()} == {day: day for day in corpora}


def test_the_default_is_the_day_of_the_run(chats, tiny_tokenizer, section, monkeypatch):
    found = []
    for day in (date.today(), date.today() + timedelta(days=400)):
        monkeypatch.setattr("neoplug.data.dataset.today", day.isoformat)
        corpus = load_corpus(section(chats, held_out=1, chat_template=DATED), tiny_tokenizer)
        assert corpus.day == day.isoformat()
        assert first_text(corpus, tiny_tokenizer).startswith(f"Today is {day:%d %B %Y}")
        found.append(corpus.fingerprint)
    assert found[0] != found[1]
    assert clock.today() == date.today().isoformat()


def test_rows_that_no_template_renders_are_tokenised_once_for_all_days(tmp_path, tiny_tokenizer, section, monkeypatch):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(4)))
    made = []
    make = "neoplug.data.dataset.make_store"
    from neoplug.data.store.build import make_store

    monkeypatch.setattr(make, lambda *given: made.append(given) or make_store(*given))
    for day in ("2024-02-29", "2025-12-31"):
        data = section(file, held_out=1, chat_template=DATED, chat_template_date=day)
        assert load_corpus(data, tiny_tokenizer).day is None
    assert len(made) == 1


def test_a_date_is_checked(section):
    assert section("x", chat_template_date="2026-01-31").chat_template_date == "2026-01-31"
    for wrong in ("31.01.2026", "2026-02-30", "today"):
        with pytest.raises(ValidationError, match="a date is YYYY-MM-DD"):
            section("x", chat_template_date=wrong)

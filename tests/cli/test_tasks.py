"""Questions made from a hand-written dictionary in WordNet's format; they depend only on the seed."""

import json
import shutil
from pathlib import Path

import pytest

from neoplug.errors import UsageError
from neoplug.evaluation import wordnet
from neoplug_probes.questions import read_questions

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by ...  \n"
NOUNS = {
    "dog": 'a domestic animal that barks; "the dog barked all night"',
    "apple": "fruit with red or yellow or green skin",
    "river": "a large natural stream of water",
    "chair": 'a seat for one person: "he put his coat on the chair"',
    "lamp": "a source of artificial light",
    "paris": "the capital of France",  # a name
    "dogma": "a religious doctrine",  # its count of uses is 0
    "goldfish": "a small goldfish kept in bowls",  # its definition contains the word
    "piece_of_cake": "any undertaking that is easy",  # more than one word
}


@pytest.fixture
def folder(tmp_path):
    """Write the nouns as WordNet does; `dog` has a second sense, the one of `chair`."""
    data, index = LICENCE, LICENCE
    offsets = {word: f"{at:08d}" for at, word in enumerate(NOUNS, 1740)}
    for word, gloss in NOUNS.items():
        written = word.capitalize() if word == "paris" else word
        data += f"{offsets[word]} 05 n 01 {written} 0 001 @ 00001740 n 0000 | {gloss}  \n"
        senses = [offsets[word]] + ([offsets["chair"]] if word == "dog" else [])
        counted = 0 if word == "dogma" else 1
        index += f"{word} n {len(senses)} 2 @ ~ {len(senses)} {counted} {' '.join(senses)}  \n"
    (tmp_path / "index.noun").write_text(index)
    (tmp_path / "data.noun").write_text(data)
    return tmp_path


def test_each_question_has_the_words_definition_as_answer(folder):
    questions = wordnet.questions(folder, 5)
    plain = {word: NOUNS[word].partition('"')[0].rstrip(" ;:") for word in ("dog", "apple", "river", "chair", "lamp")}
    for question in questions:
        word = question["query"].split('"')[1]
        assert question["query"] == f'The noun "{word}" means:'
        assert question["choices"][question["gold"]] == plain.pop(word)
        assert len(set(question["choices"])) == len(question["choices"]) == 4
        if word == "dog":
            assert NOUNS["chair"].partition(":")[0] not in question["choices"]  # it is correct, too
    assert not plain
    with pytest.raises(UsageError, match="has 5 words that a question can be made of, fewer than 6"):
        wordnet.questions(folder, 6)


def test_the_questions_depend_only_on_the_seed(folder, tmp_path_factory):
    five = wordnet.questions(folder, 5)
    assert wordnet.questions(folder, 3) == five[:3]
    others = [wordnet.questions(folder, 5, seed) for seed in range(1, 4)]
    assert all(other != five for other in others)
    shuffled = Path(shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "dict"))
    lines = (shuffled / "data.noun").read_text().splitlines(keepends=True)
    (shuffled / "data.noun").write_text("".join(lines[:1] + lines[:0:-1]))  # the order of lines has no effect
    assert wordnet.questions(shuffled, 5) == five


def test_the_command_writes_a_file_that_the_probe_reads(folder, tmp_path, monkeypatch, neoplug):
    out = tmp_path / "asked" / "nouns.jsonl"
    answer = neoplug("tasks", "wordnet", out, "--dict", folder, "-n", 4)
    assert answer.code == 0, answer.err
    assert "4 questions" in answer.out
    assert [question.query for question in read_questions(out)] == [q["query"] for q in wordnet.questions(folder, 4)]
    again = neoplug("tasks", "wordnet", out, "--dict", folder)
    assert (again.code, "nothing is overwritten" in again.err) == (2, True)
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    assert neoplug("tasks", "wordnet", tmp_path / "other.jsonl", "-n", 4).code == 0
    assert json.loads((tmp_path / "other.jsonl").read_text().splitlines()[0]) == wordnet.questions(folder, 1)[0]
    nowhere = neoplug("tasks", "wordnet", tmp_path / "none.jsonl", "--dict", tmp_path / "nothing")
    assert nowhere.code == 2
    assert "apt install wordnet-base" in nowhere.err
    data = (folder / "data.noun").read_text()
    (folder / "data.noun").write_text("dog n 1\n")
    broken = neoplug("tasks", "wordnet", tmp_path / "none.jsonl", "--dict", folder)
    assert (broken.code, "data.noun, line 1: this is no data file" in broken.err) == (2, True)
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text("dog n 1\n")
    broken = neoplug("tasks", "wordnet", tmp_path / "none.jsonl", "--dict", folder)
    assert (broken.code, "index.noun, line 1: this is no index" in broken.err) == (2, True)

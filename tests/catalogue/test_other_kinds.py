"""Every property of treatments, probes, preparations, caches and ways to load a model holds for the built-in ones."""

import json

import pytest

from neoplug.registry import answered, installed
from neoplug.testing import CACHE, LOAD, PREPARATION, PROBE, TREATMENT, NotApplicable

KITS = {
    **dict.fromkeys(("edit_documents", "edit_batch"), TREATMENT),
    "on_evaluate": PROBE,
    "prepare_student": PREPARATION,
    "encode_teacher": CACHE,
    "load_kwargs": LOAD,
}
# Options of the plugins that need some.
OPTIONS = {
    "data_fraction": {"fraction": 0.5},
    "forgetting": {"source": "questions.jsonl"},
    "label_noise": {"probability": 0.3},
    "multiple_choice": {"tasks": "questions.jsonl"},
    "prune_depth": {"num_hidden_layers": 3},
    "prune_width": {"intermediate_size": 64, "calibration_tokens": 64},
    "teacher_noise": {"probability": 0.3},
    "token_dropout": {"probability": 0.3},
    "truncated_context": {"tokens": 2},
}
LM_EVAL = "lm_eval"  # it needs the extra `eval`, and has tests of its own


def built_in():
    """Yield (hook, name, property) of each built-in plugin of these kinds."""
    for entry in installed():
        if not entry.target.startswith("neoplug_") or entry.name == LM_EVAL:
            continue
        for hook in KITS.keys() & answered(entry.load()):
            yield from (pytest.param(hook, entry, name, id=f"{entry.name}-{name}") for name in KITS[hook].properties)


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """Write a file of two questions into the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"query": "Two and two are", "choices": [" four", " five, I think"], "gold": gold} for gold in (0, 1)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("hook", "entry", "name"), list(built_in()))
def test_a_property_of_the_kind(questions, hook, entry, name):
    from neoplug.registry import build

    try:
        KITS[hook].properties[name](build(entry.load(), OPTIONS.get(entry.name, {})))
    except NotApplicable as reason:
        pytest.skip(str(reason))

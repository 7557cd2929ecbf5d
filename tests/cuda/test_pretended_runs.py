"""Whole runs on a pretended GPU, by recipe: what they compute, what they wait for, and how they attend.

A run on the device must give the losses and the held-out metrics of the same recipe on the CPU, to 1e-6 in float32. In
a step neoplug's own lines cause no wait, other libraries no more than `budget.json` has, and no attention has a dense
mask. `tests/cuda/device.py` says what this proves and what it cannot.
"""

import json
from pathlib import Path

import pytest

from tests.conftest import tiny_llama
from tests.cuda.results import computed
from tests.cuda.waits import OURS

BUDGET = Path(__file__).with_name("budget.json")
EVERY_LOSS = (
    "cross_entropy", "forward_kl", "reverse_kl", "jsd", "taid", "alpha_beta", "decoupled_kl", "hellinger", "jeffreys",
    "logit_mse", "listwise",
)  # fmt: skip
UNTIED = {"model": "untied"}  # a student with a head of its own
WIDE = {"model": "wide"}  # likewise; FlashAttention takes 16 numbers a head, and not 12
NF4 = {"load": {"nf4": {"compute_dtype": "float32"}}}
RECIPES = {
    "chat": {},
    "packed, with checkpointing": {"data": {"packing": True}, "train": {"gradient_checkpointing": True}},
    "packed, bfloat16": {
        "data": {"packing": True}, "teacher": {"dtype": "bfloat16"}, "student": {"dtype": "bfloat16", **WIDE},
    },
    "adapted head": {"student": UNTIED, "adapter": {"lora": {"r": 4, "target_modules": ["q_proj", "lm_head"]}}},
    "trained head": {"student": UNTIED, "adapter": {"lora": {"r": 4, "modules_to_save": ["lm_head"]}}},
    "adapted head, bfloat16": {
        "teacher": {"dtype": "bfloat16"}, "student": {"dtype": "bfloat16", **WIDE},
        "adapter": {"lora": {"r": 4, "target_modules": ["q_proj", "lm_head"]}},
    },
    "trained head, bfloat16": {
        "teacher": {"dtype": "bfloat16"}, "student": {"dtype": "bfloat16", **WIDE},
        "adapter": {"lora": {"r": 4, "modules_to_save": ["lm_head"]}},
    },
    "shared part of a vocabulary": {"student": {"model": "larger"}},
    "teacher on the CPU": {"teacher": {"device": "cpu"}},
    "prompt tuning": {"adapter": {"prompt_tuning": {}}},
    "prefix tuning": {"adapter": {"prefix_tuning": {}}},
    "full": {"adapter": {"full": {}}, "train": {"learning_rate": 1e-5}},
    "muon": {"adapter": {"full": {}}, "optimizer": {"muon": {}}, "train": {"learning_rate": 1e-5}},
    "calibrated": {
        "loss": {"cross_entropy": {}, "forward_kl": {"calibrate": "cross_entropy"}},
        "train": {"log_gradient_norms": True, "logging_steps": 1},
    },
    "best checkpoint": {
        "evaluate": {"eval_steps": 1, "metric_for_best_model": "forward_kl", "load_best_model_at_end": True},
        "train": {"save_steps": 1},
    },
    "cached states": {"teacher": {"cache": {"states": {"dtype": "float32"}}}},
    "cached entries": {"teacher": {"cache": {"top_k": {}}}},
    "nf4": {"teacher": NF4, "student": NF4},
    "every loss": {
        "loss": {loss: {} for loss in EVERY_LOSS},
        "token_weights": {"position": {}, "student_confidence": {}, "teacher_entropy": {}},
        "treatments": {"label_noise": {"probability": 0.1}},
    },
}  # fmt: skip
QUICK = (
    "packed, with checkpointing", "packed, bfloat16", "adapted head", "adapted head, bfloat16", "prompt tuning",
    "every loss",
)  # fmt: skip
PADDED = ("prompt tuning", "prefix tuning")  # virtual tokens begin a row: each document has its own, and a mask
ROUNDED = ("packed, bfloat16", "adapted head, bfloat16", "trained head, bfloat16")  # kernels round differently


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_tokenizer):
    """Return the folders of further students by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("untied", "larger", "wide")}
    tiny_llama(folders["untied"], tiny_tokenizer, seed=3, tie_word_embeddings=False)
    tiny_llama(folders["larger"], tiny_tokenizer, seed=4, vocab=len(tiny_tokenizer) + 9)
    tiny_llama(folders["wide"], tiny_tokenizer, seed=5, hidden=64, tie_word_embeddings=False)
    return folders


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def name(request):
    """Return the name of a recipe."""
    return request.param


@pytest.fixture(scope="module")
def recipe(lab, models, name):
    """Return the file of a recipe."""
    sections = dict(RECIPES[name])
    if model := sections.get("student", {}).get("model"):
        sections["student"] = sections["student"] | {"model": str(models[model])}
    return lab.recipe(name, **sections)


@pytest.fixture(scope="module")
def outcome(driver, lab, recipe, name):
    """Return what a run of the recipe on the device ended with; the run is in the lab, under the recipe's name."""
    return driver.run(recipe, lab.folder / name)


def test_a_run_computes_what_it_does_on_the_cpu(lab, recipe, outcome, name):
    assert outcome.error is None
    on_cpu, on_device = computed(lab.run(f"{name}, CPU", recipe)), computed(lab.at(name))
    tolerance = 2e-2 if name in ROUNDED else 1e-6
    assert len(on_cpu) > 20
    assert on_device == pytest.approx(on_cpu, rel=tolerance, abs=tolerance)


def test_neoplug_does_not_wait_in_a_step(outcome):
    assert outcome.error is None
    assert outcome.own_waits == []


def test_libraries_wait_no_more_than_before(lab, outcome, name):
    assert outcome.error is None
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    found = {}
    for event, count in outcome.in_a_step("wait"):
        if not event.caller.startswith(OURS):
            place, function = event.caller.split(" ")
            key = f"{place.split(':')[0]} {function}: {event.what}"  # lines change with each version
            found[key] = found.get(key, 0) + count / 3
    exceeded = {key: count for key, count in found.items() if count > budget.get(name, {}).get(key, 0)}
    assert not exceeded, (
        f"waits a step of {name!r}; {BUDGET.name} has fewer. If they must be, enter {json.dumps(found)}"
    )


def test_batches_come_from_pinned_memory(outcome):
    assert outcome.error is None
    copies = [event for event, _ in outcome.in_a_step("copy") if "from pinned memory" in event.what]
    assert copies


def test_no_attention_has_a_dense_mask(outcome, name):
    assert outcome.error is None
    if name in PADDED:
        pytest.skip("rows are padded, and a mask hides the padding")
    assert outcome.dense_masks == []


def test_flash_attention_computes_all_documents_in_16_bits(outcome, name):
    kinds = {event.what for event, _ in outcome.in_a_step("attention")}
    assert ("by document, by FlashAttention" in kinds) == (name in ROUNDED)
    assert name not in ROUNDED or len(kinds) == 1


def test_the_budget_has_recipes_of_this_file():
    assert json.loads(BUDGET.read_text(encoding="utf-8")).keys() <= RECIPES.keys()

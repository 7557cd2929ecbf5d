"""Forgetting against transformers: the logits of the base and of the student on windows of a text, cut by hand."""

import copy
import json

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from neoplug.errors import RecipeError, RunError
from neoplug.evaluation.probes import probe
from neoplug.models.quiet import quiet_peft
from neoplug.models.verify import language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.recipe import load
from neoplug.registry import Plugins
from neoplug.testing.families import random_model, tokenizer
from neoplug_probes.forgetting import Forgetting

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

TEXT = "A line of text, and another one.\nThe text is read in windows, of which the last is shorter."
KEYS = ["forward_kl", "cross_entropy", "cross_entropy_change"]


class BeginsTexts:
    """A tokenizer that begins each text with a token, as Llama's does."""

    bos_token_id = 1

    def __call__(self, text, add_special_tokens=True, **_):
        ids = tokenizer()(text)["input_ids"]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "other.txt"


@pytest.fixture
def forgetting(source):
    """Return the probe, with windows of 20 tokens, and a student that it was given after loading."""
    student, plugin = random_model("llama", seed=1), Forgetting(source, max_length=20)
    plugin.after_load(student, "student")
    return plugin, student


def measured(plugin, module, reads=None):
    model = language_model(module, "lm_head", Vocabulary(259))
    return probe(Plugins({"probes": {"forgetting": plugin}}), model, None, [], reads or tokenizer())["forgetting"]


@torch.no_grad()
def logits(module, length=20, begin=(), limit=32):
    """Return logits [tokens, V] and labels of all windows by the model's own forward pass."""
    ids, size, found = tokenizer()(TEXT)["input_ids"], length - len(begin), []
    for at in range(0, len(ids), size)[:limit]:
        window = torch.tensor([[*begin, *ids[at : at + size]]])
        found.append((module(input_ids=window).logits[0, -window.shape[1] : -1].double(), window[0, 1:]))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def expected(base, student, **windows):
    (of_base, labels), (of_student, _) = logits(base, **windows), logits(student, **windows)
    divergence = kl_div(log_softmax(of_student, -1), log_softmax(of_base, -1), reduction="none", log_target=True)
    entropies = [cross_entropy(each, labels).item() for each in (of_base, of_student)]
    return [divergence.sum(-1).mean().item(), entropies[1], entropies[1] - entropies[0]]


def adapted(student, seed=0, **options):
    from peft import LoraConfig, get_peft_model

    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(student, LoraConfig(target_modules=["down_proj"], init_lora_weights=False, **options))


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["body", "head"])
def test_of_an_adapter_it_is_the_drift_from_the_base(forgetting, options):
    plugin, student = forgetting
    base = copy.deepcopy(student)
    assert list(measured(plugin, student).values()) == pytest.approx(expected(base, base), abs=1e-6)
    model = adapted(student, **options).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1
    trains = [weight.requires_grad for weight in model.parameters()]
    found = measured(plugin, model)
    assert list(found) == KEYS
    wanted = expected(base, model)
    assert wanted[0] > 0.01
    assert list(found.values()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert [weight.requires_grad for weight in model.parameters()] == trains


@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
def test_of_virtual_tokens(forgetting):
    from peft import PromptTuningConfig, get_peft_model

    plugin, student = forgetting
    base = copy.deepcopy(student)
    with quiet_peft():
        model = get_peft_model(student, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    assert list(measured(plugin, model).values()) == pytest.approx(expected(base, model), rel=1e-5)


def test_a_frozen_adapter_stays_frozen(forgetting):
    """Peft marks all of an adapter's weights as trainable when it is on again."""
    plugin, student = forgetting
    model = adapted(student).requires_grad_(False)
    measured(plugin, model)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_windows_of_a_tokenizer_that_begins_texts(source):
    student, plugin = random_model("llama", seed=1), Forgetting(source, max_length=16, limit=3)
    plugin.after_load(student, "student")
    found = measured(plugin, student, BeginsTexts())
    assert found["cross_entropy"] == pytest.approx(expected(student, student, length=16, begin=[1], limit=3)[1])


def test_of_full_fine_tuning_the_change_is_that_since_before(forgetting):
    plugin, student = forgetting
    base = copy.deepcopy(student)
    assert measured(plugin, student)["forward_kl"] == 0
    student.lm_head.weight.data *= 1.5
    found, wanted = measured(plugin, student), expected(base, student)
    assert found["forward_kl"] is None
    assert [found["cross_entropy"], found["cross_entropy_change"]] == pytest.approx(wanted[1:], rel=1e-5)
    assert abs(wanted[2]) > 0.01


def test_of_an_adapter_that_changed_its_base_the_change_is_that_since_before(forgetting):
    plugin, student = forgetting
    base = copy.deepcopy(student)
    measured(plugin, student)
    model = adapted(student)
    model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.data *= 0.5
    found, wanted = measured(plugin, model), expected(base, model)
    assert found["forward_kl"] is None
    assert [found["cross_entropy"], found["cross_entropy_change"]] == pytest.approx(wanted[1:], rel=1e-5)


def test_a_resumed_run_has_what_was_measured_before(source, forgetting):
    plugin, student = forgetting
    assert plugin.state_dict() == {"before": None}
    measured(plugin, student)
    base, resumed = copy.deepcopy(student), Forgetting(source, max_length=20)
    student.lm_head.weight.data *= 1.5
    resumed.after_load(student, "student")
    resumed.load_state_dict(plugin.state_dict())
    found = measured(resumed, student)
    assert [found["forward_kl"], found["cross_entropy_change"]] == [
        None,
        pytest.approx(expected(base, student)[2], rel=1e-5),
    ]


def test_a_model_that_is_no_student_has_a_cross_entropy_alone(forgetting):
    plugin, _ = forgetting
    teacher = random_model("llama", seed=2)
    plugin.after_load(teacher, "teacher")
    for model in (teacher, adapted(teacher)):
        found = measured(plugin, model)
        assert found == {**dict.fromkeys(KEYS), "cross_entropy": pytest.approx(expected(model, model)[1], rel=1e-5)}


@pytest.mark.parametrize(
    ("options", "message"), [({"max_length": 1}, r"^max_length is 1"), ({"limit": 0}, r"^limit is 0")]
)
def test_options_out_of_range_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        Forgetting(source, **options)


def test_windows_longer_than_the_model_has_positions_are_refused(source):
    plugin, student = Forgetting(source, max_length=600), random_model("llama", seed=1)
    with pytest.raises(RunError, match="windows of 600 tokens are too long: the model was made for 512"):
        measured(plugin, student)


def test_a_text_of_one_token_has_no_value(source):
    source.write_text("A", encoding="utf-8")
    assert measured(Forgetting(source), random_model("llama", seed=1)) == dict.fromkeys(KEYS)


@pytest.mark.parametrize(("content", "what"), [(b"\xff\xfe\x00", "cannot be read as text"), (b" \n", "has no text")])
def test_a_file_without_text_is_refused_before_the_run(tmp_path, source, content, what):
    source.write_bytes(content)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "A text."}) + "\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "student: {model: student}\ndata: {source: rows.jsonl}\nadapter: {lora: {}}\nloss: {cross_entropy: {}}\n"
        "probes: {forgetting: {source: other.txt}}\n"
    )
    with pytest.raises(RecipeError, match=rf"other\.txt {what}"):
        load(file)

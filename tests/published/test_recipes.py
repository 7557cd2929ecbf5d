"""The published recipes have the numbers of their sources, stated here by hand, and say what these leave open."""

import re

import pytest

from neoplug import recipe as recipes
from neoplug.recipe.source import shipped

NAMES = [name for name in shipped() if name.startswith("published/")]
ADAPTED = ["published/dora/kd", "published/lora_plus/kd", "published/moslora/kd", "published/pissa/kd",
           "published/qlora/kd"]  # fmt: skip
ALL_LINEAR = "all-linear"
NO_KEYS = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def facts(**numbers):
    """Return what a source states.

    `batch`: rows of an optimizer step over all processes. `share`: weights of cross-entropy and of distillation, the
    latter without a factor T^2.
    """
    return numbers


FACTS = {
    "llm_neo/neo": facts(r=64, alpha=128, dropout=0, rate=2e-4, batch=8, epochs=1, length=2048, warmup=0.1,
                        schedule="cosine", share=(0.5, 0.5), rows=10_000, seed=42, decay=0),
    "llm_neo/lora": facts(r=64, alpha=128, rate=2e-4, share=(1, 0), epochs=1, batch=8),
    "llm_neo/kd": facts(full=True, rate=2e-5, share=(0.5, 0.5), epochs=1, batch=8),
    "llm_neo/sft": facts(full=True, rate=2e-5, share=(1, 0), epochs=1, batch=8),
    "llm_neo/card_10k": facts(r=128, rate=1e-4, epochs=1, share=(0.1, 0.9), rows=10_000),
    "torchtune/lora": facts(r=64, alpha=128, rate=3e-4, share=(1, 0), batch=32, epochs=1, targets=NO_KEYS),
    "torchtune/teacher": facts(share=(1, 0)),
    "torchtune/kd_untuned_teacher": facts(r=64, rate=3e-4, share=(0.5, 0.5), batch=32, warmup=100, clip=0),
    "torchtune/kd_tuned_teacher": facts(r=64, alpha=128, dropout=0, rate=3e-4, share=(0.5, 0.5), batch=32, epochs=1,
                                       warmup=100, decay=0.01, clip=0, schedule="cosine", targets=NO_KEYS),
    "torchtune/kd_tuned_both": facts(rate=3e-4, share=(0.5, 0.5)),
    "torchtune/kd_ratio_0.25": facts(rate=3e-4, share=(0.75, 0.25)),
    "torchtune/kd_ratio_0.75": facts(rate=3e-4, share=(0.25, 0.75)),
    "torchtune/kd_ratio_1": facts(rate=3e-4, share=(0, 1)),
    "torchtune/kd_rate_1e-3": facts(rate=1e-3, share=(0.5, 0.5)),
    "torchtune/kd_rate_1e-4": facts(rate=1e-4, share=(0.5, 0.5)),
    "torchtune/kd_rate_1e-5": facts(rate=1e-5, share=(0.5, 0.5)),
    "minillm/kd_gpt2_120m": facts(full=True, rate=5e-4, batch=32, epochs=20, length=512, decay=0.01, clip=1,
                                 schedule="cosine", share=(0.5, 0.5)),
    "minillm/kd_llama_7b": facts(full=True, rate=1e-5, batch=128, epochs=10, share=(0.5, 0.5)),
    "gkd/trl_lora": facts(r=64, alpha=16, rate=2e-4, batch=32, epochs=1, share=(0, 1), temperature=0.9, beta=0.5),
    "gkd/trl_full": facts(full=True, rate=2e-5, batch=32, epochs=1, share=(0, 1), temperature=0.9, beta=0.5),
    "distillm/gpt2_120m": facts(full=True, rate=5e-4, batch=32, epochs=20, length=512, decay=0.01, skew=0.1, seed=10,
                               share=(0, 1)),
    "distillm/openllama2_3b": facts(r=16, alpha=64, dropout=0.1, rate=5e-4, batch=32, epochs=10, skew=0.1,
                                    share=(0, 1)),
    "distillm2/qwen2.5_1.5b": facts(r=16, alpha=128, dropout=0.05, rate=5e-5, batch=32, epochs=1, length=1024, skew=0.1,
                                   warmup=0.1, schedule="cosine", targets=ALL_LINEAR, share=(0, 1)),
    "taid/tinyllama_llama2": facts(full=True, rate=1e-4, batch=64, epochs=5, length=2048, warmup=0, clip=1,
                                  taid=(0.2, 1, 5e-4, 0.99), share=(0, 1)),
    "taid/tinyllama_phi3": facts(full=True, rate=1e-4, batch=64, epochs=5, taid=(0.4, 1, 5e-4, 0.99), share=(0, 1)),
    "dkd/tinyllama_llama2": facts(full=True, rate=1e-4, dkd=(1, 0.5), temperature=1, share=(0, 1)),
    "abkd/gpt2_120m": facts(full=True, rate=5e-4, batch=32, epochs=20, ab=(0.2, 0.7), share=(0, 1)),
    "abkd/openllama2_3b": facts(r=16, alpha=64, dropout=0.1, rate=2.5e-4, epochs=10, ab=(0.1, 0.8), share=(0, 1)),
    "akl/gpt2_120m": facts(full=True, rate=5e-4, mu=0.5, epochs=20),
    "dskd/tinyllama_llama2": facts(r=256, alpha=8, dropout=0.1, rate=1e-3, batch=32, epochs=10, length=512, decay=0.01,
                                  clip=1, seed=10, temperature=2, share=(0.5, 0.5)),
    "todi/tinyllama_llama2": facts(r=256, alpha=8, dropout=0.1, rate=1e-3, batch=32, epochs=10, seed=10, temperature=2,
                                  share=(0.5, 0.5)),
    "minitron/width": facts(full=True, rate=1e-4, warmup=40, batch=1152, length=8192, tokens=94e9, share=(0, 1)),
    "minitron/depth": facts(full=True, rate=1e-4, warmup=40, batch=1152, length=8192, tokens=94e9, share=(0, 1)),
    "distillkit/offline": facts(full=True, rate=2e-6, batch=8, length=8192, epochs=1, share=(0.5, 0.5), temperature=1),
    "modelopt/qad_nf4": facts(rate=1e-5, rows=20_000, length=8192, epochs=1, batch=4, warmup=0.05, share=(0, 1)),
    "qlora/kd": facts(r=64, alpha=16, dropout=0.1, rate=2e-4, batch=16, steps=1875, clip=0.3, warmup=0.03, decay=0),
    "dora/kd": facts(r=32, alpha=64, dropout=0.05, rate=2e-4, batch=16, epochs=3, length=256, targets=FIVE),
    "pissa/kd": facts(r=128, alpha=128, dropout=0, rate=2e-5, batch=128, epochs=1, warmup=0.03, decay=0,
                     schedule="cosine", targets=ALL_LINEAR),
    "lora_plus/kd": facts(r=8, alpha=16, dropout=0.1, batch=32, epochs=1, targets=ALL_LINEAR),
    "moslora/kd": facts(r=16, alpha=32, dropout=0.05, rate=3e-4, batch=16, epochs=3, length=256, warmup=100,
                       targets=FIVE),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    """Return the resolved values of each published recipe, by name."""
    return {name: recipes.load(name).resolved() for name in NAMES}


def stated(values):
    """Return the numbers of a resolved recipe under the names of FACTS."""
    train, data = values["train"], values["data"]
    adapter = next(options for name, options in values["adapter"].items() if name != "loraplus")
    losses = {name: dict(options) for name, options in values["loss"].items()}
    ce = losses.pop("cross_entropy", {"weight": 0})["weight"]
    ((kind, loss),) = losses.items() or {("", None)}
    loss = loss or {"weight": 0}
    temperature = loss.get("temperature", 1)
    batch = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    found = {
        "r": adapter.get("r"),
        "alpha": adapter.get("lora_alpha"),
        "dropout": adapter.get("lora_dropout"),
        "targets": adapter.get("target_modules"),
        "full": "full" in values["adapter"],
        "rate": train["learning_rate"],
        "batch": batch,
        "epochs": train.get("num_train_epochs"),
        "steps": train.get("max_steps"),
        "warmup": train["warmup_steps"],
        "schedule": train["lr_scheduler_type"],
        "clip": train["max_grad_norm"],
        "length": data["max_length"],
        "rows": data.get("max_rows"),
        "seed": values["seed"],
        "decay": values["optimizer"]["adamw"]["weight_decay"],
        "share": (ce, loss["weight"] * temperature**2),
        "temperature": temperature,
        "beta": loss.get("beta"),
        "skew": loss.get("alpha"),
        "mu": loss.get("mu"),
        "ab": (loss.get("alpha"), loss.get("beta")),
        "dkd": (loss.get("alpha"), loss.get("beta")),
        "taid": tuple(loss.get(name) for name in ("t_start", "t_end", "alpha", "beta")),
        "tokens": batch * data["max_length"] * (train.get("max_steps") or 0),
    }
    return kind, found


def test_each_recipe_is_in_the_table_and_at_least_16_were_published_as_distillation():
    assert sorted(f"published/{name}" for name in FACTS) == sorted(NAMES)
    without_teacher = {"published/llm_neo/lora", "published/llm_neo/sft", "published/torchtune/lora",
                       "published/torchtune/teacher"}  # fmt: skip
    assert len(set(NAMES) - set(ADAPTED) - without_teacher) >= 16


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_numbers_of_its_source(loaded, name):
    _, found = stated(loaded[name])
    for key, value in FACTS[name.removeprefix("published/")].items():
        expected = pytest.approx(value, rel=1e-3) if isinstance(value, tuple | float) else value
        assert found[key] == expected, key


@pytest.mark.parametrize(("name", "loss"), {
    "gkd/trl_lora": "jsd", "distillm/gpt2_120m": "skew_forward_kl", "distillm/openllama2_3b": "skew_reverse_kl",
    "distillm2/qwen2.5_1.5b": "distillm2", "taid/tinyllama_llama2": "taid", "dkd/tinyllama_llama2": "decoupled_kl",
    "abkd/gpt2_120m": "alpha_beta", "akl/gpt2_120m": "adaptive_kl", "todi/tinyllama_llama2": "todi",
    "minitron/width": "forward_kl", "llm_neo/neo": "forward_kl", "modelopt/qad_nf4": "forward_kl",
}.items())  # fmt: skip
def test_a_recipe_has_the_loss_of_its_source(loaded, name, loss):
    assert stated(loaded[f"published/{name}"])[0] == loss


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_names_a_source_that_can_be_looked_up_and_what_it_leaves_open(loaded, name):
    reference = loaded[name]["reference"]
    assert re.search(r"arXiv \d{4}\.\d{5}|code [\w.-]+/[\w.-]+|PyTorch blog", reference["source"])
    assert reference["left_open"]
    assert reference["adapted"] == (name in ADAPTED)
    assert "scale" not in reference


def test_a_loraplus_recipe_has_its_ratio(loaded):
    assert loaded["published/lora_plus/kd"]["adapter"]["loraplus"]["lr_ratio"] == 16


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("published/torchtune/")])
def test_the_results_of_a_single_run_are_targets_with_two_standard_errors_of_the_benchmarks_size(loaded, name):
    """Standard error of a share near p of N questions: sqrt(p (1 - p) / N); 10,042 and 1,221 questions."""
    targets = loaded[name]["reference"]["targets"]
    for task, questions in (("hellaswag.acc_norm", 10_042), ("commonsense_qa.acc", 1_221)):
        target = targets[f"probes.lm_eval.{task}"]
        p = target["value"]
        assert target["tolerance"] == pytest.approx(2 * (p * (1 - p) / questions) ** 0.5, rel=0.25)


def test_second_hand_values_are_marked(loaded):
    for name in ("published/minitron/width", "published/minitron/depth"):
        reference = loaded[name]["reference"]
        assert "second hand" in reference["source"]

"""The student as its own teacher in complete runs: a second copy of its base, and the formula of the average."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from neoplug import recipe as recipes
from neoplug.errors import RecipeError, UsageError
from neoplug.runs.plan import plan
from neoplug.runs.progress import Silent
from neoplug.runs.remeasure import recipe_for_target, remeasure
from neoplug.testing.families import make

TEMPLATE = (
    "Think before you answer.\n{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}"
    "{{ '<|endoftext|>' if m['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
PARTS = """
@dataclass(eq=False)
class Records:
    '''Writes the trained weights before the first step and after each one.'''

    folder: str

    def write(self, number, model):
        trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        torch.save(trained, Path(self.folder, f"{number}.pt"))

    @hookimpl
    def penalty(self, model, progress):
        if progress == 0:
            self.write(0, model)
        return 0 * sum(weight.sum() for weight in model.parameters() if weight.requires_grad)

    @hookimpl
    def on_step_end(self, step, model):
        self.write(step, model)


@dataclass(eq=False)
class Compares:
    '''Cross-entropy of both models on the held-out text, with their own forward passes.'''

    @hookimpl
    def on_evaluate(self, model, teacher, batches, predict):
        found = {"is_same": teacher is model}
        for name, module in (("student", model), ("teacher", teacher)):
            if module is not None:
                parts = [q.gather(1, ids[:, None]).sum() for batch in batches for q, ids in predict(module, batch)]
                found[name] = float(-torch.stack(parts).sum() / sum(len(batch.labels) for batch in batches))
        return found


@dataclass(eq=False)
class TrainsNorms:
    '''An adapter that is not peft's, and trains weights of the base.'''

    @hookimpl
    def add_adapter(self, model):
        for name, weight in model.named_parameters():
            weight.requires_grad_("norm" in name)
        return model


@dataclass(eq=False)
class AddsBias:
    '''An adapter that is not peft's, and cannot be turned off.'''

    @hookimpl
    def add_adapter(self, model):
        layer = model.model.layers[0].self_attn.q_proj
        layer.register_parameter("own", torch.nn.Parameter(torch.zeros(layer.out_features)))
        layer.register_forward_hook(lambda layer, given, answer: answer + layer.own)
        return model

    @hookimpl
    def save_adapter(self, model, path):
        (path / "own.txt").write_text("here")

    @hookimpl
    def load_adapter(self, model, path):
        return self.add_adapter(model)


@dataclass(eq=False)
class HidesBias(AddsBias):
    '''One that claims that it can be turned off.'''

    @hookimpl
    def add_adapter(self, model):
        from contextlib import nullcontext

        model = super().add_adapter(model)
        model.disable_adapter = nullcontext
        return model
"""
UNKNOWN_ON_META = """
from neoplug_adapters.lora import LoRA


@dataclass(eq=False)
class ReadsWeights(LoRA):
    '''An adapter of which nothing is known before weights are loaded, so that the base is loaded in float32.'''

    def _adapt(self, model, config, batches):
        next(model.parameters()).sum().item()
        return super()._adapt(model, config, batches)
"""
BASE = {"self": "base"}
EMA = {"self": "ema", "decay": 0.6}


@pytest.fixture
def own(lab):
    """Return the lab with a student that is its own teacher by default."""
    lab.base["teacher"] = BASE
    lab.plugin("parts", PARTS)
    return lab


@pytest.fixture(scope="module")
def biased_student(tmp_path_factory, tiny_student):
    """Return the folder of the student, with biases in its attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("biased") / "student")
    config = AutoConfig.from_pretrained(folder)
    config.attention_bias = True
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def evaluate(run, recipe):
    return remeasure(str(run.path), recipe_for_target(str(run.path), recipe), Silent())


@pytest.mark.parametrize(
    "sections",
    [
        {"teacher": {"chat_template": TEMPLATE}, "token_weights": {"teacher_entropy": {}}},
        {"loss": {"jsd": {}, "cross_entropy": {"weight": 0.5}}, "train": {"log_gradient_norms": True}},
        {"data": {"packing": True}, "train": {"gradient_checkpointing": True}},
        {"adapter": {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "up_proj"]}}},
        {"adapter": {"lora": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}}},
        {"adapter": {"lora_fa": {"r": 4}}},
        pytest.param({"adapter": {"ia3": {}}}, marks=pytest.mark.slow),
        pytest.param({"adapter": {"ln_tuning": {}}}, marks=pytest.mark.slow),
        pytest.param({"adapter": {"dora": {"r": 2}}, "student": {"dtype": "bfloat16"}}, marks=pytest.mark.slow),
    ],
    ids=["prompt", "losses", "packed", "dropout", "norm", "lora_fa", "ia3", "ln_tuning", "bf16"],
)
def test_the_base_teaches_as_a_second_copy_of_it_does(own, tiny_student, sections):
    """Bit for bit: metrics of each step with diagnostics, evaluations, and the trained adapter."""
    teacher = sections.pop("teacher", {})
    dtype = sections.get("student", {}).get("dtype", "float32")
    ours = own.run("ours", teacher=teacher, **sections)
    del own.base["teacher"]
    theirs = own.run("theirs", teacher={"model": str(tiny_student), "dtype": dtype, **teacher}, **sections)
    assert ours.facts == theirs.facts
    assert ours.adapter_bytes == theirs.adapter_bytes
    for name in ("before", "teacher", "after"):
        assert ours.result[name] == theirs.result[name]
    if not teacher:
        assert ours.result["before"]["forward_kl"] == 0


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_a_student_that_starts_from_a_stored_adapter_has_its_base_as_teacher(own, tiny_student, kind):
    """And its average starts from the stored adapter."""
    first = own.run("first", teacher=None, loss={"cross_entropy": {}}, train={"max_steps": 2})
    student = {"adapter_path": str(first.path / "adapter")}
    ours = own.run("ours", teacher={"self": kind}, student=student, train={"max_steps": 2})
    if kind == "ema":
        assert ours.lines[0]["losses"]["forward_kl"] == ours.result["before"]["forward_kl"] == 0
        return
    del own.base["teacher"]
    theirs = own.run(
        "theirs", teacher={"model": str(tiny_student), "dtype": "float32"}, student=student, train={"max_steps": 2}
    )
    assert ours.facts == theirs.facts
    assert ours.result["before"] == theirs.result["before"]
    assert ours.result["before"]["forward_kl"] > 0.01


@pytest.mark.slow
def test_a_base_that_is_rounded_after_the_adapter_was_added_is_still_the_teacher(own):
    own.plugin("reads", UNKNOWN_ON_META)
    run = own.run(
        "run", adapter={"./reads.py:ReadsWeights": {"r": 4}}, student={"dtype": "bfloat16"}, train={"max_steps": 2}
    )
    assert run.lines[0]["losses"]["forward_kl"] == 0
    assert run.result["after"]["forward_kl"] > 0


def test_a_prompt_of_the_teacher_for_which_the_student_has_no_positions_is_refused(own):
    folder = make("gpt2", own.folder / "gpt2", n_positions=400)
    long = "many words " * 100
    sections = {"student": {"model": str(folder)}, "teacher": {"chat_template": long + TEMPLATE}}
    with pytest.raises(RecipeError, match="but the teacher was made for") as refused:
        own.run("run", data={"max_length": 4096}, adapter={"lora": {"r": 4}}, **sections)
    assert "set data.max_length" in str(refused.value)


@pytest.mark.slow
def test_a_quantised_base_teaches_as_a_second_copy_of_it_does(own, tiny_student):
    sections = {"student": {"load": {"nf4": {}}}, "train": {"max_steps": 3}}
    ours = own.run("ours", **sections)
    del own.base["teacher"]
    theirs = own.run(
        "theirs", teacher={"model": str(tiny_student), "dtype": "float32", "load": {"nf4": {}}}, **sections
    )
    assert ours.facts == theirs.facts
    assert ours.result["after"] == theirs.result["after"]
    assert ours.facts[0]["losses"]["forward_kl"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny_student", {"target_modules": ["q_proj", "lm_head"]}),
        ("tiny_student", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("tiny_teacher", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("tiny_teacher", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
    ids=["tied-head", "tied-whole-embeddings", "untied-embeddings", "untied-whole-head"],
)
def test_the_base_has_its_own_head_and_embeddings(own, request, options, model):
    """The student's head is another module, which computes the same logits up to rounding."""
    base = str(request.getfixturevalue(model))
    sections = {"student": {"model": base}, "adapter": {"lora": {"r": 4, **options}}, "train": {"max_steps": 3}}
    ours = own.run("ours", **sections)
    del own.base["teacher"]
    theirs = own.run("theirs", teacher={"model": base, "dtype": "float32"}, **sections)
    for mine, other in zip(ours.lines, theirs.lines, strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-4, abs=1e-6)
    assert ours.lines[-1]["losses"]["forward_kl"] > 0.01
    for name in ("teacher", "after"):
        found, expected = ({**run.result[name], "probes": 0} for run in (ours, theirs))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("adapter", ["prompt_tuning", "prefix_tuning"])
def test_the_base_of_a_student_with_virtual_tokens_teaches_without_them(own, tiny_student, adapter):
    """The copy of the base has another layout: the sums differ by rounding."""
    sections = {"adapter": {adapter: {"num_virtual_tokens": 4}}, "train": {"max_steps": 2}}
    ours = own.run("ours", **sections)
    del own.base["teacher"]
    theirs = own.run("theirs", teacher={"model": str(tiny_student), "dtype": "float32"}, **sections)
    for mine, other in zip(ours.lines, theirs.lines, strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-5)
    for name in ("before", "teacher", "after"):
        found, expected = ({**run.result[name], "probes": 0} for run in (ours, theirs))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert ours.lines[0]["losses"]["forward_kl"] > 0.01


@pytest.mark.parametrize(
    "adapter", [{"lora": {"r": 4}}, {"full": {}}, {"pissa": {"r": 4}}], ids=["lora", "full", "pissa"]
)
def test_the_average_follows_its_formula(own, adapter):
    """In float64, over steps of plain SGD, with gradient accumulation."""
    folder, decay, steps = own.folder / "weights", EMA["decay"], 5
    folder.mkdir()
    run = own.run(
        "run", teacher=EMA, adapter=adapter, optimizer={"sgd": {}},
        treatments={"./parts.py:Records": {"folder": str(folder)}}, train={"max_steps": steps, "learning_rate": 0.5},
    )  # fmt: skip
    weights = [torch.load(folder / f"{number}.pt") for number in range(steps + 1)]
    average = load_file(run.path / "checkpoints" / f"step-{steps}" / "average.safetensors")
    assert average.keys() == weights[0].keys()
    moved = 0.0
    for name, found in average.items():
        assert found.dtype == torch.float32
        start, *rest = (each[name].double() for each in weights)
        expected = decay**steps * start
        for step, weight in enumerate(rest, 1):
            expected = expected + (1 - decay) * decay ** (steps - step) * weight
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
        moved = max(moved, float((found - rest[-1]).abs().max()))
    assert moved > 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # raised within peft
def test_the_average_teaches_as_a_model_with_these_weights(own, tiny_student, evaluation_chat):
    """The divergence after training, from forward passes of transformers and peft with the checkpoint's weights."""
    from peft import PeftModel, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = {"eval_source": str(evaluation_chat), "held_out": None}
    run = own.run("run", teacher={**EMA, "chat_template": TEMPLATE}, data=data, train={"max_steps": 3})
    models, tokenizer = [], AutoTokenizer.from_pretrained(tiny_student)
    for file in ("trainable", "average"):
        weights = load_file(run.path / "checkpoints" / "step-3" / f"{file}.safetensors")
        base = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
        models.append(PeftModel.from_pretrained(base, run.path / "adapter").eval())
        set_peft_model_state_dict(models[-1], {name.replace(".default", ""): each for name, each in weights.items()})
    kl, entropy = [], []
    for line in evaluation_chat.read_text(encoding="utf-8").splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        labels = tokenizer(answer + "<|im_end|>")["input_ids"]
        prompts = (
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            f"Think before you answer.\nuser:\n{question}\nassistant:\n",
        )
        log_q, log_p = (
            predictions(model, tokenizer(prompt)["input_ids"], labels)
            for model, prompt in zip(models, prompts, strict=True)
        )
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        entropy.append(-(log_p.exp() * log_p).sum(-1))
    assert run.result["after"]["forward_kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4)
    assert run.result["teacher"]["entropy"] == pytest.approx(float(torch.cat(entropy).mean()), rel=1e-4)


def predictions(model, prompt, labels):
    """Return the log-probabilities [n, V] of the tokens after a prompt, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + labels])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


@pytest.mark.parametrize("teacher", [BASE, EMA], ids=["base", "ema"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(own, teacher):
    sections = {"adapter": {"lora": {"r": 4, "lora_dropout": 0.1}}, "evaluate": {"eval_steps": 2}}
    whole = own.run("whole", teacher=teacher, **sections)
    own.plugin("stops", STOPS)
    with pytest.raises(Exception, match="stopped"):
        own.run(
            "parts", teacher=teacher, probes={"./stops.py:StopsOnce": {"file": str(own.folder / "stopped")}}, **sections
        )
    parts = own.run("parts", own.folder / "parts-recipe.yaml", resume=True)
    assert parts.facts == whole.facts
    assert parts.adapter_bytes == whole.adapter_bytes
    for name in ("before", "teacher", "after", "evaluations"):
        mine, other = parts.result[name], whole.result[name]
        for each in mine if isinstance(mine, list) else [mine]:
            each.pop("probes", None)
        for each in other if isinstance(other, list) else [other]:
            each.pop("probes", None)
        assert mine == other


STOPS = """
@dataclass(eq=False)
class StopsOnce:
    file: str

    @hookimpl
    def on_step_end(self, step):
        if step == 5 and not Path(self.file).exists():
            Path(self.file).touch()
            raise OSError("stopped")
"""


@pytest.mark.parametrize(
    ("teacher", "adapter"),
    [
        (BASE, {"lora": {"r": 4}}),
        (EMA, {"lora": {"r": 4}}),
        pytest.param(EMA, {"full": {}}, marks=pytest.mark.slow),
    ],
    ids=["base", "ema", "ema-full"],
)
def test_a_finished_run_is_evaluated_with_the_same_result(own, teacher, adapter):
    """Also where the best step is restored; and a probe runs both models."""
    run = own.run(
        "run", teacher=teacher, adapter=adapter, probes={"./parts.py:Compares": {}}, train={"save_steps": 1},
        evaluate={
            "eval_steps": 2, "metric_for_best_model": "forward_kl", "greater_is_better": True,
            "load_best_model_at_end": True,
        },
    )  # fmt: skip
    found = evaluate(run, own.folder / "run-recipe.yaml")
    assert found["student"] == run.result["after"]
    assert found["teacher"] == run.result["teacher"]
    (probe,) = run.result["after"]["probes"].values()
    assert not probe["is_same"]
    assert probe["student"] == pytest.approx(run.result["after"]["cross_entropy"], rel=1e-5)
    assert probe["teacher"] == pytest.approx(run.result["teacher"]["cross_entropy"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"pissa": {"r": 4}}, {"p_tuning": {}}], ids=["pissa", "p_tuning"])
def test_an_average_of_weights_that_the_run_saves_in_another_form_is_refused_by_eval(own, adapter):
    run = own.run("run", teacher=EMA, adapter=adapter, train={"max_steps": 1})
    with pytest.raises(UsageError, match="does not fit this student"):
        evaluate(run, own.folder / "run-recipe.yaml")


def test_what_has_no_average_and_no_base_is_refused_by_eval(own, tiny_student):
    run = own.run("run", train={"max_steps": 1})
    ema = own.recipe("ema", teacher=EMA)
    with pytest.raises(UsageError, match="no average of this student's weights"):
        evaluate(run, ema)
    with pytest.raises(UsageError, match="no average of this student's weights"):
        remeasure(str(tiny_student), recipe_for_target(str(tiny_student), ema), Silent())
    prompted = own.recipe("prompted", teacher={"chat_template": TEMPLATE})
    found = remeasure(str(tiny_student), recipe_for_target(str(tiny_student), prompted), Silent())
    assert found["student"]["forward_kl"] > 0.01
    whole = own.run("whole", teacher=None, adapter={"full": {}}, loss={"cross_entropy": {}}, train={"max_steps": 1})
    with pytest.raises(RecipeError, match="holds no base"):
        evaluate(whole, own.folder / "run-recipe.yaml")


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"pissa": {}}, "the initial product of A and B is subtracted from the base"),
        ({"full": {}}, "trains 20 weights of the base"),
        ({"lora": {"bias": "lora_only", "target_modules": ["q_proj"]}}, "trains 2 weights of the base itself"),
        ({"./parts.py:TrainsNorms": {}}, "trains 5 weights of the base"),
        ({"./parts.py:AddsBias": {}}, "has no method `disable_adapter`"),
        ({"./parts.py:HidesBias": {}}, "the logits differ from those of the base by"),
    ],
    ids=["pissa", "full", "bias", "norms", "bias-of-own", "hidden"],
)
def test_an_adapter_that_changes_the_base_is_refused_before_the_first_step(own, biased_student, adapter, reason):
    if "lora" in adapter:
        own.base["student"]["model"] = str(biased_student)
    with pytest.raises(
        RecipeError, match=r"run-recipe.yaml:\d+:\d+: the student's base cannot be the teacher"
    ) as caught:
        own.run("run", adapter=adapter)
    assert reason in str(caught.value)
    assert not (own.folder / "run" / "metrics.jsonl").exists()


def test_the_plan_counts_the_average_once_and_no_second_model(own):
    plans = {
        name: plan(recipes.load(own.recipe(name, teacher=each)), quick=True)
        for name, each in (("base", BASE), ("ema", EMA))
    }
    size = 4 * plans["ema"]["parameters"]["trainable"]
    assert plans["ema"]["memory_bytes"]["average_weights"] == size
    assert plans["ema"]["memory_bytes"]["total"] == plans["base"]["memory_bytes"]["total"] + size
    assert plans["ema"]["disk_bytes"]["checkpoints"] == plans["base"]["disk_bytes"]["checkpoints"] + 3 * size
    assert "teacher_weights" not in plans["base"]["memory_bytes"]
    assert list(plans["base"]["models"]) == ["student"]


def test_the_lock_and_the_card_name_the_student_as_the_teacher(own):
    run = own.run("run", train={"max_steps": 1})
    assert run.lock["models"]["teacher"] == {"self": "base"}
    card = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "taught by the student's own base" in card
    again = own.run("again", run.path / "recipe.yaml")
    assert again.facts == run.facts

"""The results of a run, computed again by plain transformers, peft and torch in float64."""

import hashlib
import json
import math
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

import neoplug
from neoplug.errors import UsageError

FIELDS = {
    "step", "tokens", "answer_tokens", "loss", "losses", "learning_rate", "grad_norm", "tokens_per_second",
    "peak_memory_bytes", "seconds",
}  # fmt: skip
OF_EACH = {"cross_entropy", "perplexity", "entropy"}
METRICS = OF_EACH | {"forward_kl", "reverse_kl", "jsd", "top1_agreement", "top10_mass_share", "kd_ce_cosine"}
WITNESS = """
@dataclass(eq=False)
class Witness:
    file: str

    @hookimpl
    def on_train_end(self, model):
        model.eval()
        with torch.no_grad():
            torch.save(model(input_ids=torch.arange(3, 40)[None]).logits, self.file)
"""
GRADIENTS = """
@dataclass(eq=False)
class Gradients:
    folder: str

    @hookimpl
    def on_step_end(self, step, model):
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        torch.save(found, Path(self.folder) / f"gradients-{step}.pt")
"""


@dataclass
class Text:
    """One conversation, tokenised by the chat template and scored by a regular expression."""

    ids: list[int]
    loss_mask: list[int]  # positions of answer tokens


def texts(file, folder):
    """Tokenise a chat file again: the text from the assistant's header to its closing token is the answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [m.span(1) for m in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.DOTALL)]
        places = enumerate(encoded["offset_mapping"])
        scored = [place for place, (start, _) in places if any(a <= start < b for a, b in spans)]
        found.append(Text(encoded["input_ids"], scored))
    return found


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def with_adapter(folder, adapter):
    from peft import PeftModel

    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(load(folder), adapter).eval()


def logits_and_labels(model, conversations):
    """Return [N, V] float64 logits, with a separate forward pass for each text, and [N] labels."""
    logits, labels = [], []
    for text in conversations:
        logits.append(model(input_ids=torch.tensor([text.ids])).logits[0, [place - 1 for place in text.loss_mask]])
        labels += [text.ids[place] for place in text.loss_mask]
    return torch.cat(logits).double(), torch.tensor(labels)


def evaluation_metrics(student, teacher, labels):
    """Return the evaluation metrics by torch's functions, from whole float64 logits."""
    log_p, log_q = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    middle = ((log_p.exp() + log_q.exp()) / 2).log()

    def kl(of, to):
        return functional.kl_div(to, of, log_target=True, reduction="sum").item() / len(labels)

    entropy = functional.cross_entropy(student, labels).item()
    p, q, y = log_p.exp(), log_q.exp(), functional.one_hot(labels, student.shape[-1])
    likeliest = p >= p.sort(descending=True).values[:, 9:10]
    return {
        "entropy": torch.distributions.Categorical(logits=student).entropy().mean().item(),
        "top10_mass_share": (q[likeliest].sum() / p[likeliest].sum()).item(),
        "kd_ce_cosine": functional.cosine_similarity((q - p).flatten(), (q - y).flatten(), dim=0).item(),
        "forward_kl": kl(log_p, log_q),
        "reverse_kl": kl(log_q, log_p),
        "jsd": (kl(log_p, middle) + kl(log_q, middle)) / 2,
        "cross_entropy": entropy,
        "perplexity": math.exp(entropy),
        "top1_agreement": (student.argmax(-1) == teacher.argmax(-1)).double().mean().item(),
    }


@pytest.fixture(scope="module")
def run(module_lab, evaluation_chat):
    """Return a run of two epochs of 24 rows, 10 rows a step: 10, 10, 4 in each epoch."""
    module_lab.plugin("witness", WITNESS)
    train = {"max_steps": None, "num_train_epochs": 2.0, "gradient_accumulation_steps": 5}
    data = {"held_out": None, "eval_source": str(evaluation_chat)}
    witness = {"file": str(module_lab.folder / "logits.pt")}
    return module_lab.run(
        "run", train=train, data=data, probes={"./witness.py:Witness": witness, "calibration": {}}, seed=3
    )


@pytest.fixture(scope="module")
def corpus(tiny_chat, tiny_student):
    return texts(tiny_chat, tiny_student)


def test_the_directory_holds_the_documented_files(run):
    names = {path.name for path in run.path.iterdir()}
    files, folders = {"recipe.yaml", "lock.json", "metrics.jsonl", "result.json", "log.txt"}, {"adapter", "checkpoints"}
    assert names == files | folders | {"evaluation", "contents.json"}
    assert run.steps_saved == [2, 4, 6]
    assert {path.name for path in (run.path / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert run.hidden_leftovers == []


def test_each_step_has_a_line_with_every_field(run):
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 5, 6]
    for line in run.lines:
        assert set(line) == FIELDS | ({"diagnostics"} if line["step"] in (3, 6) else set())
        assert set(line["losses"]) == {"cross_entropy", "forward_kl"}
        weighted = 0.5 * line["losses"]["cross_entropy"] + 2.0 * line["losses"]["forward_kl"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-12)
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert line["peak_memory_bytes"] > 10**7


def test_the_learning_rate_follows_a_cosine(run):
    expected = [0.01 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [line["learning_rate"] for line in run.lines] == pytest.approx(expected)


def test_tokens_add_up_to_the_corpus_in_every_epoch(run, corpus):
    for epoch in (run.lines[:3], run.lines[3:]):
        assert sum(line["tokens"] for line in epoch) == sum(len(text.ids) for text in corpus)
        assert sum(line["answer_tokens"] for line in epoch) == sum(len(text.loss_mask) for text in corpus)
        assert epoch[2]["tokens"] < 0.7 * min(epoch[0]["tokens"], epoch[1]["tokens"])  # 4 rows, not dropped


def test_the_result_has_every_field(run):
    result, lines = run.result, run.lines
    assert result["status"] == "completed"
    assert result["format"] == 1
    for key in ("before", "after"):
        assert set(result[key]) == METRICS | {"probes"}
        assert set(result[key]["probes"]) >= {"calibration"}
    assert set(result["teacher"]) == OF_EACH | {"probes"}
    assert set(result["teacher"]["probes"]["calibration"]) == {"ece", "brier"}
    assert result["steps"] == 6
    assert result["tokens"] == sum(line["tokens"] for line in lines)
    assert result["answer_tokens"] == sum(line["answer_tokens"] for line in lines)
    assert result["seconds"] > sum(line["seconds"] for line in lines)
    assert result["peak_memory_bytes"] >= max(line["peak_memory_bytes"] for line in lines)


def test_parameters_are_counted(run, tiny_student):
    model = with_adapter(tiny_student, run.path / "adapter")
    adapter = sum(tensor.numel() for tensor in run.adapter.values())
    assert run.result["trainable_parameters"] == adapter
    assert run.result["total_parameters"] == sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_evaluation_metrics_equal_float64(run, evaluation_chat, tiny_student, tiny_teacher):
    conversations = texts(evaluation_chat, tiny_student)
    teacher, labels = logits_and_labels(load(tiny_teacher), conversations)
    for key, model in {
        "before": load(tiny_student),
        "after": with_adapter(tiny_student, run.path / "adapter"),
    }.items():
        expected = evaluation_metrics(logits_and_labels(model, conversations)[0], teacher, labels)
        measured = {name: run.result[key][name] for name in METRICS}
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6), key
    expected = {name: value for name, value in evaluation_metrics(teacher, teacher, labels).items() if name in OF_EACH}
    assert {name: run.result["teacher"][name] for name in OF_EACH} == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_plain_peft_loads_the_saved_adapter(run, tiny_student):
    model = with_adapter(tiny_student, run.path / "adapter")
    logits = model(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(logits, torch.load(run.path.parent / "logits.pt"))
    assert not torch.equal(logits, load(tiny_student)(input_ids=torch.arange(3, 40)[None]).logits)


def test_the_lock_holds_hashes(run):
    lock = run.lock
    (record,) = [record for name, record in lock["plugins"].items() if "Witness" in name]
    assert record["sha256"] == hashlib.sha256((run.path.parent / "witness.py").read_bytes()).hexdigest()
    assert lock["seed"] == 3
    assert {"python", "torch", "transformers", "peft"} <= lock["versions"].keys()
    for model in lock["models"].values():
        assert re.fullmatch("[0-9a-f]{64}", model["sha256"])


def test_a_run_is_never_overwritten(run, module_lab):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="never overwritten"):
        neoplug.run(module_lab.folder / "run-recipe.yaml", output=run.path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_unchanged(lab):
    (lab.folder / "mine").mkdir()
    (lab.folder / "mine" / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UsageError, match="is no run"):
            lab.run("mine", resume=resume)
    assert [path.name for path in (lab.folder / "mine").iterdir()] == ["thesis.txt"]


def test_the_first_step_equals_torch_on_whole_logits(lab, corpus, evaluation_chat, tiny_student, tiny_teacher):
    """All rows in one step: losses, the norm and each gradient equal autograd's in float64 on whole logits."""
    lab.plugin("gradients", GRADIENTS)
    train = {"max_steps": 1, "per_device_train_batch_size": 7, "gradient_accumulation_steps": 4, "max_grad_norm": 0.0}
    data = {"held_out": None, "eval_source": str(evaluation_chat)}
    adapter = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    run = lab.run(
        "run", train=train, data=data, adapter=adapter, probes={"./gradients.py:Gradients": {"folder": str(lab.folder)}}
    )
    (line,) = run.lines
    found = torch.load(lab.folder / "gradients-1.pt")

    model = with_adapter(tiny_student, run.path / "adapter").double()
    named = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    with torch.no_grad():  # the initial weights: B was zero, and A has no gradient in the first step
        for name, parameter in named.items():
            parameter.requires_grad_()
            if "lora_B" in name:
                parameter.zero_()
    teacher, labels = logits_and_labels(load(tiny_teacher).double(), corpus)
    student, _ = logits_and_labels(model, corpus)
    entropy = functional.cross_entropy(student, labels)
    divergence = functional.kl_div(
        functional.log_softmax(student, -1),
        functional.log_softmax(teacher.detach(), -1),
        log_target=True,
        reduction="sum",
    ) / len(labels)
    gradients = torch.autograd.grad(0.5 * entropy + 2.0 * divergence, list(named.values()))

    assert line["losses"] == pytest.approx({"cross_entropy": entropy.item(), "forward_kl": divergence.item()}, rel=1e-5)
    expected = evaluation_metrics(student.detach(), teacher.detach(), labels)
    of_teacher = evaluation_metrics(teacher.detach(), teacher.detach(), labels)
    names = ("top1_agreement", "top10_mass_share", "kd_ce_cosine")
    wanted = {name: expected[name] for name in names}
    for name in ("cross_entropy", "entropy"):
        wanted |= {f"student_{name}": expected[name], f"teacher_{name}": of_teacher[name]}
    assert line["diagnostics"] == pytest.approx(wanted, rel=1e-4)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert found.keys() == named.keys()
    for name, gradient in zip(named, gradients, strict=True):
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-4 * norm)


def test_splitting_a_step_into_micro_batches_changes_nothing(lab, drop):
    """1x8 = 2x4 = 8x1; rows of unequal lengths, some of them without answer tokens; tokens of unequal weight."""
    lab.plugin("gradients", GRADIENTS)
    runs, gradients = {}, {}
    for batch, accumulation in ((1, 8), (2, 4), (8, 1)):
        name = f"{batch}x{accumulation}"
        (lab.folder / f"{name}-gradients").mkdir()
        runs[name] = lab.run(
            name,
            train={
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "max_steps": 4,
                "save_steps": 100,
                "max_grad_norm": 0.5,
            },
            optimizer={"sgd": {}},
            treatments={drop: {"rows": [1, 5, 6, 9, 13, 17, 18, 22]}},
            token_weights={"position": {"half_life": 5.0}, "student_confidence": {}},
            probes={"./gradients.py:Gradients": {"folder": str(lab.folder / f"{name}-gradients")}},
        )
        found = (torch.load(lab.folder / f"{name}-gradients" / f"gradients-{step}.pt") for step in (1, 2, 3, 4))
        gradients[name] = list(found)
    reference = runs.pop("8x1")
    assert len({line["answer_tokens"] for line in reference.lines}) > 2
    for name, run in runs.items():
        for ours, theirs in zip(run.lines, reference.lines, strict=True):
            assert (ours["tokens"], ours["answer_tokens"]) == (theirs["tokens"], theirs["answer_tokens"])
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=2e-6)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        for ours, theirs in zip(gradients[name], gradients["8x1"], strict=True):
            for key, gradient in theirs.items():
                torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_step_without_answer_tokens_has_loss_zero(lab, drop):
    run = lab.run("run", train={"max_steps": 2}, treatments={drop: {"rows": list(range(24))}}, optimizer={"sgd": {}})
    for line in run.lines:
        assert (line["answer_tokens"], line["loss"], line["grad_norm"]) == (0, 0.0, 0.0)
    assert run.result["status"] == "completed"


SHAKY = """
@dataclass(eq=False)
class Shaky:
    '''Label noise of a file's own: the stream must not depend on where the file is named from.'''

    @hookimpl
    def edit_batch(self, batch, rng):
        hit = torch.rand(len(batch.labels), generator=rng) < 0.5
        batch.labels = torch.where(hit, 5, batch.labels)
"""


@pytest.mark.slow
def test_running_the_resolved_recipe_again_gives_the_same(lab, monkeypatch, tmp_path_factory):
    lab.plugin("shaky", SHAKY)
    first = lab.run("first", treatments={"./shaky.py:Shaky": {}}, train={"max_steps": 3})
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    second = lab.run("second", recipe=first.path / "recipe.yaml")
    assert second.facts == first.facts
    assert second.adapter_bytes == first.adapter_bytes
    assert (second.path / "recipe.yaml").read_bytes() == (first.path / "recipe.yaml").read_bytes()


@pytest.mark.slow
def test_the_order_of_a_recipe_has_no_effect(lab, drop):
    maps = {
        "adapter": {"lora": {"r": 4, "lora_alpha": 8}, "loraplus": {"lr_ratio": 4.0}},
        "loss": {"forward_kl": {"weight": 2.0}, "cross_entropy": {"weight": 0.5}, "jsd": {"beta": 0.3, "weight": 1.0}},
        "treatments": {
            drop: {"rows": [2]},
            "label_noise": {"probability": 0.3},
            "label_noise@more": {"probability": 0.1},
        },
        "train": {"max_steps": 3},
    }
    shuffled = {
        section: {
            name: dict(reversed(options.items())) if isinstance(options, dict) else options
            for name, options in reversed(plugins.items())
        }
        for section, plugins in reversed(maps.items())
    }
    first, second = lab.run("first", **maps), lab.run("second", **shuffled)
    assert (second.path / "lock.json").read_bytes() == (first.path / "lock.json").read_bytes()
    assert second.facts == first.facts
    assert second.adapter_bytes == first.adapter_bytes


LAYER_CALLS = """
@dataclass(eq=False)
class LayerCalls:
    '''Counts how often a part of a layer of the student runs.'''

    calls: int = 0

    @hookimpl
    def after_load(self, model, role):
        if role == "student":
            model.model.layers[0].mlp.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1

    @hookimpl
    def on_step_end(self):
        calls, self.calls = self.calls, 0
        return {"layer_calls": calls}
"""


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_gradient_checkpointing_runs_layers_twice_and_changes_nothing_else(lab, adapter):
    lab.plugin("calls", LAYER_CALLS)
    options = {"full": {}, "lora": {"lora_dropout": 0.2}}[adapter]
    once, twice = (
        lab.run(
            f"checkpointing-{checkpointing}",
            adapter={adapter: options},
            treatments={"./calls.py:LayerCalls": {}},
            train={"max_steps": 3, "gradient_checkpointing": checkpointing},
        )
        for checkpointing in (False, True)
    )
    assert [line["layer_calls"] for line in once.lines][1:] == [2, 2]
    assert [line["layer_calls"] for line in twice.lines][1:] == [4, 4]
    for ours, theirs in zip(twice.lines, once.lines, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_full_fine_tuning_saves_a_whole_model(lab):
    from transformers import AutoTokenizer

    lab.plugin("witness", WITNESS)
    witness = {"file": str(lab.folder / "logits.pt")}
    run = lab.run("run", adapter={"full": {}}, train={"max_steps": 2}, probes={"./witness.py:Witness": witness})
    model = load(run.path / "model")
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(logits, torch.load(lab.folder / "logits.pt"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(run.path / "model").chat_template
    assert not (run.path / "adapter").exists()
    assert run.result["trainable_parameters"] == run.result["total_parameters"]


def test_a_prepared_student_is_saved_next_to_its_adapter(lab, tiny_teacher):
    lab.plugin("witness", WITNESS)
    student = {"model": str(tiny_teacher), "prepare": {"prune_depth": {"num_hidden_layers": 2}}}
    witness = {"file": str(lab.folder / "logits.pt")}
    run = lab.run("run", student=student, train={"max_steps": 2}, probes={"./witness.py:Witness": witness})
    base = load(run.path / "student")
    assert len(base.model.layers) == 2 < len(load(tiny_teacher).model.layers)
    model = with_adapter(run.path / "student", run.path / "adapter")
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(logits, torch.load(lab.folder / "logits.pt"))
    config = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run.path / "student")


def test_a_run_without_a_teacher(lab):
    run = lab.run("run", teacher=None, loss={"cross_entropy": {}}, train={"max_steps": 2})
    assert "teacher" not in run.result
    assert set(run.result["after"]) == OF_EACH | {"probes"}
    assert set(run.lines[-1]["diagnostics"]) == {"student_cross_entropy", "student_entropy"}

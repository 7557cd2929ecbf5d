"""`plan` and `preview`: what a run would do, compared with the models and with the run itself."""

import json
import math
import re
import shutil
import threading
from contextlib import contextmanager

import pytest

DROP_SOME = '''
from dataclasses import dataclass
import torch
from neoplug import hookimpl

@dataclass(eq=False)
class DropSome:
    """Drops the answers of rows whose number of answer tokens is no multiple of four."""

    @hookimpl
    def edit_batch(self, batch):
        keep = torch.full_like(batch.labels, len(batch.labels) % 4 == 0, dtype=torch.bool)
        batch.positions, batch.labels, batch.rows = batch.positions[keep], batch.labels[keep], batch.rows[keep]
'''


@pytest.fixture
def planned(neoplug, recipe):
    """Return a function that plans the tiny recipe with overrides."""

    def plan(*overrides):
        answer = neoplug("plan", recipe, *overrides, "--json")
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    return plan


def test_commands_render_templates_in_the_main_thread(neoplug, recipe, monkeypatch):
    """The limit of time needs it."""
    threads = []

    @contextmanager
    def recorded():
        threads.append(threading.current_thread())
        yield

    monkeypatch.setattr("neoplug.data.encode.chat.render_limits", recorded)
    for command in (["plan", recipe], ["preview", recipe], ["run", recipe, "--output", recipe.parent / "out"]):
        assert neoplug(*command).code == 0
        assert set(threads) == {threading.main_thread()}


def parameters(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_parameter_counts_are_those_of_the_models(planned, tiny_student, tiny_teacher):
    """LoRA's count in closed form: r (in + out) for each target; Llama of 2 layers, 48 hidden, 2 of 4 kv heads."""
    found = planned()
    base = parameters(tiny_student)
    lora = 2 * 4 * ((48 + 48) + (48 + 24))
    assert found["parameters"] == {"trainable": lora, "total": base + lora}
    assert found["models"]["student"]["parameters"] == base
    assert found["models"]["teacher"]["parameters"] == parameters(tiny_teacher)
    assert found["memory_bytes"]["gradients"] == 4 * lora
    assert 8 * lora <= found["memory_bytes"]["optimizer"] <= 8 * lora + 1000  # two moments, and a step counter each
    assert found["memory_bytes"]["total"] == sum(v for k, v in found["memory_bytes"].items() if k != "total")


def layers_and_rest(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    return layers, model.num_parameters() - layers


@pytest.mark.parametrize(("option", "tolerance"), [(["--quick"], 1e-3), ([], 1e-2)], ids=["formula", "foretold"])
def test_a_plan_for_several_ranks_divides_what_is_sharded(
    planned, tiny_student, tiny_teacher, monkeypatch, option, tolerance
):
    """Counted on the loaded models; what is not divided is a counter for each weight, and what FSDP pads is."""
    types = ["student.dtype=float32", "teacher.dtype=float32", *option]
    whole = planned(*types, "train.shard=base", "adapter={full: {}}")["memory_bytes"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    one, base, full = (
        planned(*types, *changes) for changes in ([], ["train.shard=base"], ["train.shard=full", "adapter={full: {}}"])
    )
    for found in (one, base, full):
        assert not [line for line in found["warnings"] if "on shapes" in line]
        memory = found["memory_bytes"]
        assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
        assert found["resident_bytes"]["tensors"] == memory["total"]
    one, base, full = (found["memory_bytes"] for found in (one, base, full))
    assert one["gradient_buckets"] == one["gradients"]
    for role, folder in (("student", tiny_student), ("teacher", tiny_teacher)):
        layers, rest = layers_and_rest(folder)
        assert base[f"{role}_weights"] == pytest.approx(4 * (layers / 4 + rest), rel=tolerance)
    for part in ("trainable_weights", "gradients", "optimizer"):
        assert full[part] == pytest.approx(whole[part] / 4, rel=tolerance)
    assert full["teacher_weights"] == base["teacher_weights"]


def test_a_plan_for_several_ranks_divides_packed_weights(planned, tiny_student, tiny_teacher, monkeypatch):
    """Half a byte for each weight of a matrix in a layer; all others, as frequencies of a rotation, have 4."""
    four = "{load: {nf4: {}}, dtype: float32, model: %s}"
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = planned(f"student={four % tiny_student}", f"teacher={four % tiny_teacher}", "train.shard=base")
    memory = found["memory_bytes"]
    sizes = (("student", tiny_student, 2 * 2 * 48, 6), ("teacher", tiny_teacher, 4 * 2 * 64, 8))
    for role, folder, norms, frequencies in sizes:
        layers, rest = layers_and_rest(folder)
        packed = (layers - norms) / 2 + 4 * norms
        assert found["models"][role]["bytes"] == pytest.approx(packed + 4 * rest)
        assert memory[f"{role}_weights"] == pytest.approx(packed / 4 + 4 * rest + 2 * 4 * frequencies, abs=1)
    assert memory["total"] >= found["models"]["teacher"]["bytes"]


def test_each_loss_that_is_measured_separately_needs_memory_for_its_own_gradient(planned):
    """A loss's gradient is as large as the adapter; calibration measures all losses and their reference."""
    assert "measured_gradients" not in planned("--quick")["memory_bytes"]
    mix = "loss={jsd: {}, cross_entropy: {}, reverse_kl: {%s}}"
    logged = planned(mix % "", "train.log_gradient_norms=true", "--quick")
    calibrated = planned(mix % "calibrate: forward_kl", "--quick")
    gradient = logged["memory_bytes"]["gradients"]
    assert logged["memory_bytes"]["measured_gradients"] == 3 * gradient
    assert calibrated["memory_bytes"]["measured_gradients"] == 4 * gradient
    assert logged["memory_bytes"]["total"] == planned(mix % "", "--quick")["memory_bytes"]["total"] + 3 * gradient


def test_the_copy_that_a_saved_adapter_is_tried_on_needs_the_memory_that_training_does_not(planned, tiny_teacher):
    """The copy has the student's weights, the adapter's and their original values; nothing of training exists then."""
    large = (f"student={{model: {tiny_teacher}, dtype: float32}}", "data.max_length=40", "--quick")
    found = planned(*large, "train.per_device_train_batch_size=1", "train.gradient_checkpointing=true")["memory_bytes"]
    lora = 4 * 4 * ((64 + 64) + (64 + 32))
    training = found["gradients"] + found["optimizer"] + found["activations"]
    assert found["at_start"] == 4 * parameters(tiny_teacher) + 8 * lora - training > 0
    assert planned(*large, "adapter={full: {}}")["memory_bytes"]["at_start"] == 0


def test_full_fine_tuning_needs_no_second_copy_of_the_model(planned, tiny_student):
    found = planned("adapter={full: {}}")
    assert found["parameters"]["trainable"] == found["parameters"]["total"] == parameters(tiny_student)
    assert "student_weights" not in found["memory_bytes"]
    assert found["disk_bytes"]["model"] == 4 * parameters(tiny_student)


@pytest.mark.parametrize(("optimizer", "bytes_a_weight"), [("adamw_8bit", 2), ("lion_8bit", 1)])
def test_each_8_bit_optimizer_state_takes_a_byte(planned, optimizer, bytes_a_weight):
    """Also: a float for each 256 numbers of a matrix, here one or two, and one map from bytes to numbers."""
    found = planned(f"optimizer={{{optimizer}: {{min_8bit_size: 0}}}}")
    lora, matrices = found["parameters"]["trainable"], 2 * 2 * 2
    extra = found["memory_bytes"]["optimizer"] - bytes_a_weight * lora
    assert 4 * matrices * bytes_a_weight <= extra - 1024 * bytes_a_weight <= 8 * matrices * bytes_a_weight


def test_quantised_weights_take_less(planned):
    """Embeddings and head are not quantised."""
    loads = ("{}", "{int8: {}}", "{fp4: {}}")
    student = [planned(f"student.load={load}", "student.dtype=float32")["models"]["student"] for load in loads]
    plain, eight, four = (model["bytes"] for model in student)
    assert eight - four == pytest.approx((plain - eight) / 6)  # 4, 1 and half a byte a weight
    assert four < plain / 2


def test_a_pruned_student_is_smaller_by_its_layers(planned, tiny_teacher):
    found = planned(f"student.model={tiny_teacher}", "student.prepare={prune_depth: {num_hidden_layers: 2}}")
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64  # q and o, k and v, the MLP, two norms
    assert found["models"]["student"]["parameters"] == parameters(tiny_teacher) - 2 * layer
    assert found["disk_bytes"]["student"] == 4 * found["models"]["student"]["parameters"]


def test_activations_are_close_to_what_autograd_saves(planned, tiny_teacher):
    """The estimate, less its logits, against the bytes that torch itself keeps for backward in a forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    found = planned(
        f"student.model={tiny_teacher}", "student.dtype=float32", "train.per_device_train_batch_size=8", "--quick"
    )
    tokens = 8 * found["data"]["longest_row"]
    estimate = found["memory_bytes"]["activations"] - tokens * 384 * 4 * 3
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher).model
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False).last_hidden_state
    kept = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)
    assert hidden.requires_grad
    assert 0.7 < estimate / kept < 1.4
    less = planned(f"student.model={tiny_teacher}", "train.gradient_checkpointing=true")
    assert less["memory_bytes"]["activations"] < planned(f"student.model={tiny_teacher}")["memory_bytes"]["activations"]


def test_steps_and_tokens_follow_from_the_data(planned):
    found = planned()
    assert found["data"]["rows"] + found["data"]["held_out_documents"] == 24
    assert found["steps"] == math.ceil(found["data"]["rows"] / 4)
    assert found["tokens"] == found["data"]["tokens"]
    longer = planned("train.num_train_epochs=null", "train.max_steps=50")
    assert longer["steps"] == 50
    assert longer["tokens"] == round(found["tokens"] * 50 / found["steps"])


def test_a_plan_warns_of_sizes_that_exceed_the_memory_of_any_machine(neoplug, recipe):
    """The sizes exceed any machine's memory; the adapter's share has the closed form r (in + out) for each target."""
    assert json.loads(neoplug("plan", recipe, "--json").out)["warnings"] == []
    absurd = [
        "--quick",
        "train.per_device_train_batch_size=1000000000",
        "train.num_train_epochs=null",
        "adapter.lora.r=1000",
    ]
    answer = neoplug("plan", recipe, *absurd, "train.max_steps=1000000000000", "train.save_steps=1")
    assert answer.code == 0, answer.err
    lines = answer.out.partition("\nwarnings\n")[2].splitlines()
    lora = 2 * 1000 * ((48 + 48) + (48 + 24))
    for line, words in zip(lines, ("of memory are needed", "GB are free in", "is seen 1,000,000,000,000 times"),
                           strict=False):  # fmt: skip
        assert words in line
    assert lines[3].startswith(f"  the adapter has {lora:,} parameters, more than the 60,144 of the model")
    assert len(lines) == 4


def test_a_plan_in_a_pipe_does_not_truncate_long_values(neoplug, recipe):
    long = "x/" * 250 + "x"
    answer = neoplug("plan", recipe, f"output_dir={long}", f"loss.forward_kl@{'y' * 300}={{weight: 0.5}}")
    assert f'"{long}"' in answer.out
    assert f"forward_kl@{'y' * 300}" in answer.out


def test_each_value_is_printed_with_its_origin(planned, recipe):
    origin = planned("train.learning_rate=1e-4")["origin"]
    assert origin["train.learning_rate"] == "override"
    assert origin["train.num_train_epochs"].endswith(f"{recipe.name}:11")
    assert origin["train.max_grad_norm"] == "default"
    assert origin["adapter.lora.r"].endswith(f"{recipe.name}:6")


def test_a_plan_is_printed_as_text_and_writes_no_file(neoplug, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answer = neoplug("plan", recipe)
    assert answer.code == 0
    assert sorted(tmp_path.rglob("*")) == before
    for part in (
        "train.max_grad_norm",
        "forward_kl",
        "neoplug 0",
        "memory, estimated",
        "disk, estimated",
        "trainable: 1,344 of",
    ):
        assert part in answer.out
    assert "\x1b" not in answer.out


def test_a_plan_loads_no_weights(neoplug, recipe, monkeypatch):
    import safetensors
    import transformers

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    assert neoplug("plan", recipe, "--json").code == 0


def test_a_preview_marks_the_scored_tokens(neoplug, recipe, tiny_chat):
    answer = neoplug("preview", recipe, "--rows", "24", "data.max_length=256")
    assert answer.code == 0, answer.err
    assert "\x1b" not in answer.out
    assert f"{answer.out.count(chr(10) + 'row ')} training rows, 4 held-out documents" in answer.out
    text = answer.out.replace("«", "").replace("»", "")
    scored = "".join(part.partition("»")[0] for part in answer.out.split("«")[1:])
    assert "What is" in text
    assert "What is" not in scored
    rows = [json.loads(line)["messages"] for line in tiny_chat.read_text().splitlines()]
    answers = [turn["content"] for messages in rows for turn in messages if turn["role"] == "assistant"]
    shown = [content for content in answers if content in text]
    assert len(shown) > 15
    assert all(content in scored for content in shown)


def test_a_preview_counts_the_marked_tokens(neoplug, recipe, tiny_tokenizer):
    lines = neoplug("preview", recipe, "--rows", "1").out.splitlines()
    head = next(line for line in lines if line.startswith("row 1: "))
    start = lines.index(head) + 1
    shown = "\n".join(lines[start : lines.index("data") - 1])
    tokens = len(tiny_tokenizer(shown.replace("«", "").replace("»", ""), add_special_tokens=False).input_ids)
    assert head.startswith(f"row 1: {tokens} tokens, ")


def test_a_preview_shows_what_the_teacher_reads_and_what_was_dropped(neoplug, recipe, tmp_path):
    template = tmp_path / "teacher.jinja"
    template.write_text("Be wise. {% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}")
    rows = [{"prompt": f"{n} + {n} = ", "completion": str(2 * n)} for n in range(8)]
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    rows += [{"messages": talk}, {"prompt": "1 + 1 = ", "completion": " "}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"{{source: {tmp_path}/mixed.jsonl, max_length: 64, held_out: 1, packing: false}}"
    answer = neoplug("preview", recipe, f"data={data}", f"teacher.chat_template={template}", "--rows", "9")
    assert answer.code == 2
    assert "1 of the 10 rows of `source` are dropped (10.0%), and at most 5.0% may be" in answer.err
    assert "-- the teacher reads\nBe wise. <user>Hi?<|im_end|><assistant>«Hello.<|im_end|>»\n" in answer.out
    assert answer.out.count("-- the teacher reads") == 1
    assert '  row 9, empty completion: {"prompt": "1 + 1 = ", "completion": " "}' in answer.out.splitlines()
    assert "  1 row of messages, " in answer.out
    allowed = neoplug("preview", recipe, f"data={data}", "data.max_dropped_rows=0.1")
    assert (allowed.code, allowed.err) == (0, "")
    assert "the teacher reads" not in allowed.out


def test_a_preview_names_the_treatments_and_what_they_change(neoplug, recipe, tmp_path):
    shown = neoplug("preview", recipe, "--rows", "4", "treatments={label_noise: {probability: 1.0}}")
    assert shown.code == 0, shown.err
    assert "\n  label_noise: applied to the rows above, which are the first that the run trains\n" in shown.out
    assert "\n  rows changed: 4; dropped, since no answer token is left: 0\n" in shown.out
    rows = shown.out.partition("\ntreatments\n")[0].split("row ")[1:]
    scored = [int(row.partition(" tokens, ")[2].partition(" scored")[0]) for row in rows]
    assert [row.count("has the label") for row in rows] == [min(20, count) for count in scored]
    assert [f"  and {count - 20} more\n" in row for count, row in zip(scored, rows, strict=True)] == [
        count > 20 for count in scored
    ]
    (tmp_path / "drop.py").write_text(DROP_SOME)
    dropped = neoplug("preview", recipe, "--rows", "4", f"treatments={{{tmp_path}/drop.py:DropSome: {{}}}}").out
    gone = re.findall(r"\nrow (\d+): \d+ tokens, 0 scored, 1 document, dropped by treatments", dropped)
    assert list(map(int, gone)) == [number for number, count in enumerate(scored, 1) if count % 4]
    assert f"rows changed: {len(gone)}; dropped, since no answer token is left: {len(gone)}" in dropped
    assert 0 < len(gone) < 4
    assert "treatments" not in neoplug("preview", recipe).out


def test_a_plan_warns_of_a_teacher_that_ends_its_answers_with_another_token(planned):
    template = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    message = "its chat template ends an answer with '<|endoftext|>'; the answers that it reads end with '<|im_end|>'"
    assert message in "".join(planned(f"teacher.chat_template={json.dumps(template)}")["warnings"])
    assert "tokenizer" not in "".join(planned()["warnings"])


def test_a_plan_refuses_a_recipe_that_the_run_refuses(neoplug, recipe, tiny_teacher, tmp_path):
    """Two swapped tokens in the vocabulary; too few learned positions."""
    from transformers import GPT2Config

    other, short = (shutil.copytree(tiny_teacher, tmp_path / name) for name in ("other", "short"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    sizes = {"n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2Config(vocab_size=384, bos_token_id=0, eos_token_id=0, **sizes).save_pretrained(short)
    for model, message in ((other, "do not share a vocabulary"), (short, "the teacher was made for 20")):
        answer = neoplug("plan", recipe, f"teacher.model={model}")
        assert (answer.code, answer.out) == (2, "")
        assert message in answer.err


@pytest.mark.parametrize("wanted", [2_000, "20_001"])
def test_a_match_is_the_nearest_rank_in_closed_form(neoplug, recipe, planned, wanted):
    """LoRA has r (in + out) parameters for each target, here 336 r in total."""
    found = planned("--match", f"parameters={wanted}")
    number = int(str(wanted))
    rank = round(number / 336)
    assert found["match"] == {
        "wanted": number, "option": "r", "value": rank, "trainable": 336 * rank,
        "difference": pytest.approx(336 * rank / number - 1), "override": f"adapter.lora.r={rank}",
    }  # fmt: skip
    assert found["parameters"]["trainable"] == 336 * 4
    assert planned(found["match"]["override"])["parameters"]["trainable"] == 336 * rank


def test_a_match_is_printed_as_text(neoplug, recipe):
    answer = neoplug("plan", recipe, "--match", "parameters=2000")
    assert "\nmatch\n  adapter.lora.r=6\n  r 6: 2,016 trainable parameters, +0.80% of 2,000\n" in answer.out
    assert (answer.code, answer.err) == (0, "")


def test_a_third_party_adapter_is_matched_too(neoplug, recipe, tmp_path, monkeypatch):
    """The adapter is in a local file. A size that it refuses is not chosen; its logs of the search are not printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADAPTER)
    answer = neoplug("plan", recipe, "adapter={./mine.py:Vectors: {}}", "--match", "parameters=3000", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)["match"]
    assert (found["value"], found["trainable"]) == (62, 48 * 62)
    assert answer.err.count("vectors") == 1
    assert json.loads(neoplug("plan", recipe, "adapter={./mine.py:Vectors: {}}", found["override"], "--json").out)[
        "parameters"
    ]["trainable"] == 48 * 62  # fmt: skip


ADAPTER = """
import logging
from dataclasses import dataclass
from typing import ClassVar
import torch
from neoplug import AdapterTraits, hookimpl

@dataclass(eq=False)
class Vectors:
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="vectors")
    vectors: int = 10

    def __post_init__(self):
        if self.vectors % 2:
            raise ValueError("vectors must be even")

    @hookimpl
    def save_adapter(self, model, path):
        torch.save(model.mine, path / "mine.pt")

    @hookimpl
    def load_adapter(self, model, path):
        model.mine = torch.load(path / "mine.pt")
        return model

    @hookimpl
    def add_adapter(self, model):
        logging.getLogger("neoplug").info("%d vectors", self.vectors)
        model.requires_grad_(False)
        model.mine = torch.nn.Parameter(torch.empty(self.vectors, model.config.hidden_size, device=model.device))
        return model
"""


@pytest.mark.parametrize(
    ("wanted", "overrides", "message"),
    [
        ("rank=4", [], "--match does not support `rank=4`"),
        ("parameters=2e6", [], "--match does not support `parameters=2e6`"),
        ("parameters=0", [], "the student has 60,144 parameters itself"),
        ("parameters=" + "9" * 25, [], "fix: choose a number from 1 to 60144"),
        ("parameters=100", [], "with r 1 it has 336, the fewest that its other options allow"),
        ("parameters=3000", ["adapter={ia3: {}}"], "fix: match the others to it, by --match parameters="),
        ("parameters=3000", ["adapter={shira: {target_modules: [k_proj]}}"], "the most that its other options allow"),
    ],
)
def test_a_size_that_cannot_be_matched_is_refused_with_the_possible_ones(neoplug, recipe, wanted, overrides, message):
    answer = neoplug("plan", recipe, *overrides, "--match", wanted)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "\nwhy: " in answer.err
    assert "\nfix: " in answer.err

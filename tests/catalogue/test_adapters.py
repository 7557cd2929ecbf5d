"""The same tests for every installed adapter; exceptions are declared by its class in `traits`.

    starts_elsewhere, changes_base, seedless, cannot_merge, not_on_quantised, shaped_by_weights, not_checkpointed
                                                                    reason or empty (docs/how-to/write-a-plugin.md)

A declared exception that is not true fails, too. A plugin without exceptions must pass every test.
"""

import copy
import pydoc_data.topics
import re
import typing
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace, UnionType

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.nn.functional import cross_entropy

from neoplug import AdapterTraits
from neoplug.data.batch import Document, collate
from neoplug.errors import RecipeError, UsageError
from neoplug.export.lora import export_lora
from neoplug.export.merge import export
from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import virtual_tokens
from neoplug.models.switched import adapter_off
from neoplug.registry import Plugins, build, installed
from neoplug.runs.directory import RunDir
from neoplug.runs.preflight import validate_separate_adapter
from neoplug.runs.saved_form import is_peft
from neoplug.teachers.itself import WeightAverage
from neoplug.testing import call
from neoplug.training import checkpoint
from neoplug_models.nf4 import NF4

STEPS = 6
# raised within peft
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term:UserWarning"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),
]


def declares(adapter, statement):
    return bool(getattr(AdapterTraits.of(adapter), statement))


def model_in(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base(tiny_student):
    return model_in(tiny_student)


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


@pytest.fixture(scope="module")
def text(tiny_tokenizer):
    """Return 6 documents of 16 tokens of real prose."""
    ids = tiny_tokenizer(pydoc_data.topics.topics["assignment"])["input_ids"]
    return torch.tensor(ids[:96]).reshape(6, 16)


@pytest.fixture(scope="module")
def input_ids(text):
    return text[:2]


@pytest.fixture(scope="module")
def batches(text):
    return [batch_of(ids) for ids in text.split(2)]


def batch_of(ids):
    scored = torch.ones(ids.shape[1], dtype=torch.bool).numpy()
    return collate([Document(row.numpy(), scored, number) for number, row in enumerate(ids)])


@pytest.fixture
def adapted(batches):
    def add(adapter, model, seed=0, batches=batches, steps=STEPS):
        rng = torch.Generator().manual_seed(seed)
        given = None if model.device.type == "meta" or batches is None else iter(batches)
        return call(adapter.add_adapter, {"model": model, "batches": given, "total_steps": steps, "rng": rng})

    return add


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def optimizer_of(model, rate=1e-2):
    return torch.optim.AdamW(trainable(model).values(), lr=rate, weight_decay=0.1)


def train(adapter, model, input_ids, optimizer=None, first=0, last=2):
    """Train as the loop does: with the plugin's penalty in the objective and `on_step_end` after each step."""
    optimizer = optimizer or optimizer_of(model)
    model.train()
    for step in range(first, last):
        torch.manual_seed(step)
        loss = loss_of(model, input_ids)
        if hasattr(adapter, "penalty"):
            loss = loss + call(adapter.penalty, {"model": model, "progress": step / (STEPS - 1)})
        loss.backward()
        optimizer.step()
        if hasattr(adapter, "on_step_end"):
            call(adapter.on_step_end, {"step": step + 1, "model": model, "metrics": {}})
        optimizer.zero_grad()


def loss_of(model, input_ids):
    # Virtual tokens add columns before those of the text.
    predicted = model(input_ids=input_ids, use_cache=False).logits[:, -input_ids.shape[1] : -1]
    return cross_entropy(predicted.flatten(0, 1).float(), input_ids[:, 1:].flatten())


def logits(model, input_ids):
    with torch.no_grad():
        return model.eval()(input_ids=input_ids).logits[:, -input_ids.shape[1] :]


def load(adapter, base, path):
    """Return the base with a saved adapter, loaded by another instance of its plugin or by plain peft."""
    from peft import PeftModel

    if hasattr(adapter, "load_adapter"):
        return replace(adapter).load_adapter(base, path)
    return PeftModel.from_pretrained(base, path)


def trains_everything(model):
    return all(parameter.requires_grad for parameter in model.parameters())


def test_it_equals_the_base_at_the_start(adapter, base, model, input_ids, adapted):
    student, wanted = adapted(adapter, model), logits(base, input_ids)
    off = (logits(student, input_ids) - wanted).abs().max()
    if hasattr(adapter, "base_weights"):  # it is closer to the base than the changed weights alone
        changed = copy.deepcopy(base)
        changed.load_state_dict(adapter.base_weights(student))
        assert 1e-3 < off < (logits(changed, input_ids) - wanted).abs().max()
        return
    assert virtual_tokens(student) or off < (1 if declares(adapter, "starts_elsewhere") else 1e-3)
    assert not declares(adapter, "starts_elsewhere") or off > 1e-3


@pytest.mark.slow
def test_the_base_is_unchanged_or_trained_in_full(adapter, base, model, input_ids, adapted):
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    student = adapted(adapter, model)
    everything = trains_everything(student)
    assert everything or not any(parameter.requires_grad for parameter in before)
    moved = not all(torch.equal(now, then) for now, then in before.items())
    assert moved == declares(adapter, "changes_base")
    before = {parameter: parameter.detach().clone() for parameter in before}
    train(adapter, student, input_ids)
    assert all(torch.equal(now, then) != everything for now, then in before.items())


@pytest.mark.slow
def test_turned_off_it_leaves_the_untouched_base(adapter, base, model, input_ids, adapted):
    """So the base can be the teacher; an adapter that changes its base declares it, and is refused."""
    student = adapted(adapter, model)
    if trains_everything(student):
        pytest.skip("there is no base left")
    if not hasattr(student, "disable_adapter"):
        with pytest.raises(RecipeError, match="has no method `disable_adapter`"):
            validate_separate_adapter([], student, "the adapter")
        return
    train(adapter, student, input_ids)
    trained, on = trainable(student).keys(), logits(student, input_ids)
    with adapter_off(student)():
        off = logits(student, input_ids)
    assert torch.equal(off, logits(base, input_ids)) != declares(adapter, "changes_base")
    assert trainable(student).keys() == trained
    assert torch.equal(logits(student, input_ids), on)
    assert not torch.equal(on, off)


@pytest.mark.slow
def test_it_computes_with_an_average_in_place_as_with_a_copy_of_it(adapter, model, input_ids, adapted):
    student = adapted(adapter, model)
    train(adapter, student, input_ids)
    average, on = WeightAverage.of(student, 0.5), logits(student, input_ids)
    for value in average.values.values():
        value.mul_(1.25).add_(0.01)
    with average.in_place():
        found = logits(student, input_ids)
    assert torch.equal(logits(student, input_ids), on)
    assert not torch.equal(found, on)
    with torch.no_grad():
        for name, weight in trainable(student).items():
            weight.copy_(average.values[name])
    assert torch.equal(logits(student, input_ids), found)


@pytest.mark.slow
def test_every_trainable_parameter_is_updated(adapter, model, input_ids, adapted):
    student = adapted(adapter, model, steps=100)  # early steps of many prune nothing
    before = {name: parameter.detach().clone() for name, parameter in trainable(student).items()}
    train(adapter, student, input_ids)
    stuck = [name for name, parameter in trainable(student).items() if torch.equal(parameter, before[name])]
    assert before
    assert not stuck


@pytest.mark.slow
def test_the_saved_adapter_is_loaded_on_the_original_base(adapter, base, model, input_ids, adapted, tmp_path):
    """By plain peft, or by the adapter's own hook where its files are not peft's."""
    student = adapted(adapter, model)
    train(adapter, student, input_ids)
    if trains_everything(student):
        pytest.skip("neoplug itself saves a whole model")
    getattr(adapter, "save_adapter", lambda model, path: model.save_pretrained(path))(student, tmp_path)
    stands_on = copy.deepcopy(base)
    if hasattr(adapter, "base_weights"):  # a run saves them
        stands_on.load_state_dict(adapter.base_weights(student))
    loaded = load(adapter, stands_on, tmp_path)
    rewritten = hasattr(adapter, "save_adapter") and not hasattr(adapter, "load_adapter")  # into other weights
    exactly = not declares(adapter, "changes_base") and not rewritten
    wanted = logits(student, input_ids)
    torch.testing.assert_close(logits(loaded, input_ids), wanted, atol=1e-5 if exactly else 2e-3, rtol=0)
    assert (wanted - logits(base, input_ids)).abs().max() > (1e-3 if exactly else 1e-2)


@pytest.mark.slow
def test_the_merged_model_computes_the_same_or_merging_is_refused(adapter, model, input_ids, adapted):
    student = adapted(adapter, model)
    train(adapter, student, input_ids)
    wanted = logits(student, input_ids)
    if trains_everything(student):
        pytest.skip("it is merged already")
    if declares(adapter, "cannot_merge"):
        with pytest.raises(UsageError, match="\nwhy: "):
            adapter.merge_adapter(student)
        return
    merged = adapter.merge_adapter(student) if hasattr(adapter, "merge_adapter") else student.merge_and_unload(True)
    torch.testing.assert_close(logits(merged, input_ids), wanted, atol=2e-3, rtol=0)
    assert not hasattr(merged, "peft_config")


def entry_of(adapter):
    target = f"{type(adapter).__module__}:{type(adapter).__name__}"
    return next(entry for entry in installed() if entry.target == target)


def saved_as_a_run(adapter, student, folder, path):
    """Save a student as a finished run does; return the run's folder and the base of its adapter."""
    from transformers import AutoTokenizer

    located, base = locate(str(folder)), model_in(folder)
    resolved = {
        "format": 1,
        "student": {"model": str(folder)},
        "data": {},
        "loss": {},
        "adapter": {entry_of(adapter).name: {}},
        "seed": 0,
    }
    record = {"source": str(folder), "revision": None, "sha256": located.sha256}
    lock = {
        "format": 1, "seed": 0, "platform": "", "versions": {}, "hardware": {"cpu": "", "gpus": []},
        "data": {"fingerprint": ""}, "models": {"student": record},
    }  # fmt: skip
    run = RunDir.create(path, resolved, lock)
    if hasattr(adapter, "base_weights"):  # a run saves them
        base.load_state_dict(adapter.base_weights(student))
        base.save_pretrained(run.student)
        AutoTokenizer.from_pretrained(folder).save_pretrained(run.student)
    where = run.model if trains_everything(student) else run.adapter
    where.mkdir()
    getattr(adapter, "save_adapter", lambda model, path: model.save_pretrained(path))(student, where)
    return run.path, base


def differ_in_linear_layers_only(student, base):
    """Return whether two models differ only in weights of linear layers."""
    linear = {f"{name}.weight" for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    own = base.state_dict()
    return all(name in linear or torch.equal(weight, own[name]) for name, weight in student.state_dict().items())


def documented_loras():
    """Return the cell of each adapter in the export page's table of LoRAs."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w.*) \| (.*) \|$", page.partition("## A LoRA of any adapter")[2], re.MULTILINE)
    return {name: cell for names, cell in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_each_adapter_that_can_be_merged():
    own = (entry for entry in installed() if entry.target.startswith("neoplug_adapters."))
    classes = {entry.name: entry.load() for entry in own}
    merge = {name for name, plugin in classes.items() if hasattr(plugin, "add_adapter")}
    assert sorted(documented_loras()) == sorted(name for name in merge if not declares(classes[name], "cannot_merge"))


@pytest.mark.slow
def test_the_exported_lora_computes_the_same_or_is_refused(adapter, model, tiny_student, input_ids, adapted, tmp_path):
    from peft import PeftModel

    student = adapted(adapter, model)
    train(adapter, student, input_ids)
    run, base = saved_as_a_run(adapter, student, tiny_student, tmp_path / "run")
    if declares(adapter, "cannot_merge"):
        for write in (export, export_lora):
            with pytest.raises(UsageError, match=re.escape(AdapterTraits.of(adapter).cannot_merge)):
                write(run, tmp_path / "lora")
        return
    merged = model_in(export(run, tmp_path / "merged"))
    documented = documented_loras().get(entry_of(adapter).name, "")
    if not differ_in_linear_layers_only(merged, base):
        assert "refused" in documented or not documented
        with pytest.raises(UsageError, match=r"why: .*model.* changed"):
            export_lora(run, tmp_path / "lora", rank=48)
        return
    found = export_lora(run, tmp_path / "lora", rank=48)  # the smaller size of each layer is 48 at most
    assert found.exact
    assert found.error < 1e-3
    assert found.needed <= 16 or not re.match("exact(?!.*where)", documented)
    assert found.needed > 16 or not documented.startswith("the largest")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora")
    wanted = logits(merged, input_ids)
    torch.testing.assert_close(logits(loaded, input_ids), wanted, atol=1e-4, rtol=0)
    assert (wanted - logits(base, input_ids)).abs().max() > 1e-2


@pytest.mark.slow
def test_the_loss_falls(adapter, base, input_ids, adapted, rates):
    falls = (fall(adapter, adapted(adapter, copy.deepcopy(base)), input_ids, rate) for rate in rates)
    assert any(each > 0.01 for each in falls)


def fall(adapter, student, input_ids, rate):
    """Return by how much the loss falls."""
    before = loss_of(student.eval(), input_ids).item()
    train(adapter, student, input_ids, optimizer_of(student, rate), last=STEPS)
    return before - loss_of(student.eval(), input_ids).item()


@pytest.mark.slow
def test_an_adapter_that_declares_to_read_data_depends_on_it(adapter, base, batches, adapted):
    if not declares(adapter, "reads_data"):
        return
    first, again, other = (
        trainable(adapted(adapter, copy.deepcopy(base), batches=some))
        for some in (batches[:1], batches[:1], batches[1:])
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(UsageError, match="training data"):
        adapted(adapter, copy.deepcopy(base), batches=None)


@pytest.mark.slow
def test_the_start_depends_only_on_the_seed(adapter, base, adapted):
    state = torch.random.get_rng_state()
    students = [adapted(adapter, copy.deepcopy(base), seed) for seed in (1, 1, 2)]
    first, again, other = (student.state_dict() for student in students)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    alike = all(torch.equal(first[name], other[name]) for name in first)
    if trains_everything(students[0]):
        return
    kept = [student.peft_config["default"].to_dict() if is_peft(student) else None for student in students]
    assert kept[0] == kept[1]
    assert (alike and kept[0] == kept[2]) == declares(adapter, "seedless")


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_or_is_refused(adapter, base, input_ids, adapted):
    if declares(adapter, "not_checkpointed"):
        train = SimpleNamespace(gradient_checkpointing=True)
        (problem,) = adapter.check(SimpleNamespace(adapter={}, train=train, student=SimpleNamespace(load={})))
        assert problem.why
        assert problem.fix
        return
    gradients = []
    for checkpointing in (False, True):
        student = adapted(adapter, copy.deepcopy(base)).train()
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        loss_of(student, input_ids).backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(student).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(adapter, base, input_ids, adapted, tmp_path):
    plugins = [replace(adapter) for _ in range(2)]
    runs = [adapted(plugin, copy.deepcopy(base)) for plugin in plugins]
    parts = [
        (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0))
        for optimizer in map(optimizer_of, runs)
    ]
    named = [Plugins({"adapter": {"it": plugin}}) for plugin in plugins]
    train(plugins[0], runs[0], input_ids, parts[0][0], last=3)
    kept = checkpoint.save(tmp_path, 3, runs[0], *parts[0], named[0], [checkpoint.pack(named[0])], {})
    checkpoint.load(kept, runs[1], *parts[1], named[1])
    for plugin, run, (optimizer, _) in zip(plugins, runs, parts, strict=True):
        train(plugin, run, input_ids, optimizer, first=3, last=STEPS)
    first, second = (run.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def skeleton(base):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base.config).requires_grad_(False)


@pytest.mark.slow
def test_it_can_be_built_on_the_meta_device_for_a_plan(adapter, base, adapted):
    planned, real = trainable(adapted(adapter, skeleton(base))), trainable(adapted(adapter, copy.deepcopy(base)))
    counted = [sum(parameter.numel() for parameter in model.values()) for model in (planned, real)]
    assert planned.keys() == real.keys()
    assert counted[0] == counted[1]
    alike = all(parameter.shape == real[name].shape for name, parameter in planned.items())
    assert alike != declares(adapter, "shaped_by_weights")
    assert all(parameter.is_meta for parameter in planned.values())


@pytest.fixture(scope="module", params=[24, 96])
def other_width(request, tiny_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    width = {"hidden_size": request.param, "intermediate_size": 2 * request.param, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **width, **heads)).requires_grad_(False)


@pytest.mark.slow
def test_default_options_work_at_other_widths(adapter, other_width, input_ids, adapted):
    base = other_width.eval()
    student = adapted(adapter, copy.deepcopy(base))
    if not declares(adapter, "starts_elsewhere"):
        torch.testing.assert_close(logits(student, input_ids), logits(base, input_ids), atol=1e-3, rtol=0)
    before = loss_of(student, input_ids).item()
    train(adapter, student, input_ids, last=STEPS)
    assert loss_of(student.eval(), input_ids).item() < before


def others(hint, value):
    """Yield values of an option's type other than its present one."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        for kind in typing.get_args(hint):
            yield from others(kind, value)
    elif typing.get_origin(hint) is typing.Literal:
        yield from (choice for choice in typing.get_args(hint) if choice != value)
    elif hint is bool:
        yield not value
    elif hint is int:
        yield from (2 * (value or 2), 2, 1)
    elif hint is float:
        yield from ((value or 1) / 2, 0.25)
    elif typing.get_origin(hint) is dict:
        yield {"q_proj": 4}
    elif typing.get_origin(hint) is list and str in typing.get_args(hint):
        yield ["q_proj"]


def first_accepted(adapter, base, adapted, option, values):
    """Return the first of these values that is accepted, and the model with it; errors must name the option."""
    for value in values:
        try:
            return value, adapted(replace(adapter, **{option: value}), skeleton(base))
        except (ValueError, RecipeError) as error:
            paths = [problem.path for problem in getattr(error, "problems", ())]
            if option not in str(error) and not any(option in path for path in paths):
                raise
    return None, None


@pytest.mark.slow
def test_each_option_is_passed_to_peft_or_is_refused(adapter, base, adapted):
    hints, plain = typing.get_type_hints(type(adapter)), adapted(adapter, skeleton(base))
    for option in (field.name for field in fields(adapter)):
        value, model = first_accepted(adapter, base, adapted, option, others(hints[option], getattr(adapter, option)))
        if model is None or trainable(model).keys() != trainable(plain).keys():  # the option selects layers
            continue
        if option in AdapterTraits.of(adapter).own_options:
            continue
        now, then = (each.peft_config["default"] for each in (model, plain))
        if getattr(now, "target_modules", None) != getattr(then, "target_modules", None):
            continue
        found = getattr(now, option, None)
        assert type(value)(found) == value, option


@pytest.mark.slow
def test_training_on_4_bits_equals_the_dequantised_base_or_is_refused(adapter, tiny_student, input_ids, adapted):
    train = SimpleNamespace(gradient_checkpointing=False)
    recipe = SimpleNamespace(adapter={}, student=SimpleNamespace(load={"nf4": {}}), train=train)
    if declares(adapter, "not_on_quantised"):
        (problem,) = adapter.check(recipe)
        assert problem.why
        assert problem.fix
        return
    assert not hasattr(adapter, "check") or adapter.check(recipe) == []
    four_bits = NF4(compute_dtype="float32")  # bfloat16 rounds too much to compare
    quantised = load_model(
        locate(str(tiny_student)), plugins=Plugins({"student.load": {"nf4": four_bits}}), role="student",
        section="student.load", dtype=torch.float32, device="cpu", attn_implementation=None,
    )  # fmt: skip
    plain = model_in(tiny_student)
    for name, layer in quantised.named_modules():
        if hasattr(layer.weight if hasattr(layer, "weight") else None, "quant_state"):
            plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    students = [adapted(replace(adapter), model) for model in (quantised, plain)]
    assert trainable(students[0]).keys() == trainable(students[1]).keys()
    for student in students:
        noise = torch.Generator().manual_seed(3)
        for parameter in trainable(student).values():
            parameter.data = parameter.data.float() + 0.01 * torch.randn(parameter.shape, generator=noise)
        torch.manual_seed(0)
        logits(student, input_ids)  # evaluation repacks 4-bit layers on some CPUs
        loss_of(student.train(), input_ids).backward()
    for name, reference in trainable(students[1]).items():
        gradient = trainable(students[0])[name].grad
        torch.testing.assert_close(gradient, reference.grad, rtol=2e-2, atol=1e-4, msg=name)
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in trainable(students[0]).values())


def test_unknown_options_are_refused(adapter):
    with pytest.raises(RecipeError, match="no_such_option"):
        build(type(adapter), {"no_such_option": 1})


def test_the_page_has_a_row_for_each_adapter_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")
    table = page.partition("\n| name |")[2].partition("\n\n")[0]
    own = {entry.name for entry in installed() if entry.target.startswith("neoplug_adapters.")} - {"loraplus"}
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(own)

"""Prepared students: cached by what their plugins used, and loaded by plain transformers."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from neoplug import hookimpl
from neoplug.data.batch import Document, collate
from neoplug.errors import RecipeError
from neoplug.models.prepared import prepare
from neoplug.models.resolve import locate
from neoplug.recipe import Train
from neoplug.registry import Plugins
from neoplug_models.prune_depth import PruneDepth
from neoplug_models.prune_width import PruneWidth

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from damage import WAYS


@dataclass(eq=False)
class Shift:
    """Adds a number to the final norm: a constant, drawn from `rng`, or read from the batches."""

    by: str = "constant"

    @hookimpl
    def prepare_student(self, model, batches, rng):
        amount = 0.5
        if self.by == "rng":
            amount = torch.rand((), generator=rng).item()
        if self.by == "batches":
            amount = next(iter(batches)).item()
        assert model.dtype == torch.float32
        model.model.norm.weight.data += amount


def run(model, plugins, *, seed=0, fingerprint="f", batches=(1.0,), weight=None):
    train = Train(per_device_train_batch_size=4)
    parts = {name: SimpleNamespace(weight=weight if name == "a" else weight and 1.0) for name in ("a", "b")}
    recipe = SimpleNamespace(seed=seed, train=train, data=SimpleNamespace(parts=parts))
    checked = SimpleNamespace(recipe=recipe, plugins=Plugins({"student.prepare": plugins}), entries={})
    return prepare(
        locate(str(model)),
        checked,
        lambda: (torch.tensor(b) if isinstance(b, float) else b for b in batches),
        fingerprint,
    )


def norm(located):
    return AutoModelForCausalLM.from_pretrained(located.path).model.norm.weight


def test_without_plugins_the_student_is_unmodified(tiny_student):
    assert run(tiny_student, {}) == locate(str(tiny_student))


def test_the_stored_student_is_complete(tiny_teacher):
    located = run(tiny_teacher, {"prune_depth": PruneDepth(layers=[0, 3])})
    assert located.kind == "prepared"
    assert located.sha256
    model, whole = (AutoModelForCausalLM.from_pretrained(folder) for folder in (located.path, tiny_teacher))
    assert model.config.num_hidden_layers == 2
    torch.testing.assert_close(model.model.layers[1].state_dict(), whole.model.layers[3].state_dict())
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (located.path, tiny_teacher)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    configs = [GenerationConfig.from_pretrained(folder).to_dict() for folder in (located.path, tiny_teacher)]
    assert configs[0] == configs[1]
    assert model.config.use_cache


@pytest.mark.parametrize("by", ["constant", "rng", "batches"])
def test_it_is_prepared_again_only_where_what_it_used_differs(tiny_student, by):
    first = run(tiny_student, {"s": Shift(by)})
    other_seed = run(tiny_student, {"s": Shift(by)}, seed=1)
    other_data = run(tiny_student, {"s": Shift(by)}, fingerprint="g", batches=(2.0,))
    assert (other_seed == first) is (by == "constant")
    assert (other_data == first) is (by != "batches")
    weighted = [run(tiny_student, {"s": Shift(by)}, weight=weight, batches=(3.0,)) for weight in (1.0, 2.0)]
    assert len({first, *weighted}) == (3 if by == "batches" else 1)  # weights change the order of rows
    assert run(tiny_student, {"s": Shift(by)}) == first
    if by == "rng":
        assert not torch.equal(norm(first), norm(other_seed))


MEASURED = {
    "prune_depth": PruneDepth(num_hidden_layers=3, importance="block_influence", calibration_tokens=40),
    "prune_width": PruneWidth(intermediate_size=96, hidden_size=60, calibration_tokens=40),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_student_prepared_on_data_is_shared_by_runs_on_the_same_data(tiny_teacher, name, monkeypatch):
    data = {
        seed: [
            collate([Document(ids, ids > 0, row=0)]) for ids in np.random.default_rng(seed).integers(0, 384, (3, 20))
        ]
        for seed in (0, 1)
    }
    first = run(tiny_teacher, {name: MEASURED[name]}, batches=data[0])
    other = run(tiny_teacher, {name: MEASURED[name]}, batches=data[1], fingerprint="g")
    seed = run(tiny_teacher, {name: MEASURED[name]}, batches=data[0][::-1], seed=1)
    assert len({first, other, seed}) == 3
    monkeypatch.setattr("neoplug.models.prepared.load_weights", None)
    assert run(tiny_teacher, {name: MEASURED[name]}, batches=data[0]) == first


def test_two_concurrent_runs_prepare_it_once(tiny_student):
    calls = []

    @dataclass(eq=False)
    class Slow:
        @hookimpl
        def prepare_student(self, batches):
            calls.append(next(iter(batches)))
            sleep(0.2)

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, tiny_student, {"slow": Slow()}) for _ in range(2)]
    assert len({future.result() for future in runs}) == 1
    assert len(calls) == 1


def test_a_cached_student_is_not_prepared_again(tiny_student, monkeypatch):
    first = run(tiny_student, {"s": Shift()})
    monkeypatch.setattr("neoplug.models.prepared.load_weights", None)
    assert run(tiny_student, {"s": Shift()}) == first


def test_other_options_are_another_student(tiny_teacher):
    cuts = [run(tiny_teacher, {"p": PruneDepth(num_hidden_layers=count)}) for count in (2, 3)]
    assert cuts[0] != cuts[1]


@pytest.mark.parametrize("package", [False, True])
def test_an_edited_plugin_prepares_the_student_again(tiny_student, tmp_path, package, monkeypatch):
    """Also where another file of its package was edited."""
    source = "from dataclasses import dataclass\nfrom neoplug import hookimpl\n@dataclass(eq=False)\nclass Add:\n"
    source += "    @hookimpl\n    def prepare_student(self, model):\n        model.model.norm.weight.data += {}\n"
    file = tmp_path / "plugin.py"
    prepared = []
    for amount in (1, 2):
        file.write_text(source.format("__import__('amounts').AMOUNT" if package else amount))
        if package:
            (tmp_path / "__init__.py").touch()
            (tmp_path / "amounts.py").write_text(f"AMOUNT = {amount}")
            monkeypatch.setitem(sys.modules, "amounts", SimpleNamespace(AMOUNT=amount))
        space = {"__name__": "edited_plugin", "__file__": str(file)}
        sys.modules["edited_plugin"] = module = SimpleNamespace(**space)
        exec(compile(file.read_text(), str(file), "exec"), space)
        vars(module).update(space)
        prepared.append(run(tiny_student, {"add": space["Add"]()}))
    del sys.modules["edited_plugin"]
    assert prepared[0] != prepared[1]
    torch.testing.assert_close(norm(prepared[1]), norm(prepared[0]) + 1)


def test_two_plugins_run_in_the_order_of_their_names(tiny_teacher):
    located = run(tiny_teacher, {"b": PruneDepth(layers=[1]), "a": PruneDepth(layers=[0, 2])})
    model, whole = (AutoModelForCausalLM.from_pretrained(folder) for folder in (located.path, tiny_teacher))
    torch.testing.assert_close(model.model.layers[0].state_dict(), whole.model.layers[2].state_dict())


def test_an_option_that_does_not_fit_the_model_is_an_error_in_the_recipe(tiny_student, home):
    with pytest.raises(RecipeError, match="only 2 layers"):
        run(tiny_student, {"prune_depth": PruneDepth(num_hidden_layers=5)})
    assert not [path for path in (home / "students").iterdir() if path.is_dir()]


def test_the_record_holds_what_the_student_was_made_from(tiny_teacher):
    located = run(tiny_teacher, {"prune_depth": PruneDepth(layers=[0, 3])})
    record = json.loads((Path(located.path) / "neoplug.json").read_text())
    assert record["format"] == 1
    assert record["source"] == str(tiny_teacher)
    assert record["plugins"]["prune_depth"]["options"] == {
        "num_hidden_layers": "None", "layers": "[0, 3]", "importance": "'even'", "calibration_tokens": "None",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "contents.json"])
def test_a_damaged_student_is_prepared_again_with_a_warning(tiny_student, name, caplog):
    first = run(tiny_student, {"s": Shift("batches")}, batches=(7.0,), fingerprint=name)
    expected = norm(first)
    WAYS["bit-flipped"](Path(first.path) / name)
    second = run(tiny_student, {"s": Shift("batches")}, batches=(7.0,), fingerprint=name)
    assert second == first
    torch.testing.assert_close(norm(second), expected, rtol=0, atol=0)
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"is damaged: {name} " in message
    assert message.endswith("; the student is prepared again")

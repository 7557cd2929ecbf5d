"""The dry run on the meta device: unsupported operations are reported, and errors end the run."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from neoplug.errors import PluginError, RunError
from neoplug.runs.preflight import is_impossible_on_meta

WHOLE = """
@dataclass(eq=False)
class Whole:
    only: str = ""

    @hookimpl
    def add_adapter(self, model):
        largest = max({read} for weight in model.parameters())
        for name, weight in model.named_parameters():
            weight.requires_grad_(self.only in name)
        return model

    @hookimpl
    def save_adapter(self, model, path):
        torch.save({{name: weight.detach() for name, weight in model.named_parameters()}}, path / "weights.pt")

    @hookimpl
    def load_adapter(self, model, path):
        model.load_state_dict(torch.load(path / "weights.pt"), strict=False)  # the head is tied
        return model
"""
HIDES = """
        if model.device.type == "meta":
            model.register_parameter("new", torch.nn.Parameter(torch.ones(1, device="meta")))
            return model
"""
BFLOAT16 = {"student": {"dtype": "bfloat16"}, "train": {"learning_rate": 1e-8, "max_steps": 1}}


def weights_of(run):
    return torch.load(run.path / "adapter" / "weights.pt")


@pytest.mark.parametrize("read", ["weight.abs().max().item()", "weight.numpy().max()", "1"])
def test_trainable_weights_are_float32(lab, tiny_student, read):
    """At a rate of 1e-8 a weight does not change; rounding to bfloat16 would change it by up to 2 ** -8 of its size."""
    lab.plugin("whole", WHOLE.format(read=read))
    trained = weights_of(lab.run("run", adapter={"./whole.py:Whole": {}}, **BFLOAT16))
    stored = load_file(tiny_student / "model.safetensors")
    changes = {name: (weight - stored[name]).abs().max() for name, weight in trained.items()}
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    assert 0 < max(changes.values()) < 1e-6


def test_weights_that_train_other_than_on_the_meta_device_are_float32(lab, tiny_student, caplog):
    """A hook may hide that it fails on the meta device; the base is then loaded again."""
    hides = WHOLE.format(read="1").replace(
        "        for name, weight in model", HIDES + "        for name, weight in model"
    )
    lab.plugin("whole", hides)
    trained = weights_of(lab.run("run", adapter={"./whole.py:Whole": {}}, **BFLOAT16))
    stored = load_file(tiny_student / "model.safetensors")
    assert 0 < max((weight - stored[name]).abs().max() for name, weight in trained.items()) < 1e-6
    assert "`./whole.py:Whole` trains 20 weights of the base, other than on the meta device" in caplog.text


def test_trained_weights_among_frozen_ones_are_not_rounded(lab, tiny_student):
    lab.plugin("whole", WHOLE.format(read="1"))
    trained = weights_of(lab.run("run", adapter={"./whole.py:Whole": {"only": "q_proj"}}, **BFLOAT16))
    stored = load_file(tiny_student / "model.safetensors")
    changes = [(trained[name] - stored[name]).abs().max() for name in trained if "q_proj" in name]
    assert 0 < max(changes) < 1e-6


@pytest.mark.parametrize("read", ["weight.abs().max().item()", "1"])
def test_frozen_weights_have_the_dtype_of_the_recipe(lab, tiny_student, read):
    lab.plugin("whole", WHOLE.format(read=read))
    found = weights_of(lab.run("run", adapter={"./whole.py:Whole": {"only": "norm"}}, **BFLOAT16))
    stored = load_file(tiny_student / "model.safetensors")
    frozen = [name for name in found if "norm" not in name]
    assert all(found[name].dtype == torch.bfloat16 for name in frozen)
    assert all(torch.equal(found[name], stored[name].bfloat16()) for name in frozen)


def test_an_operation_without_meta_support_is_reported_with_the_plugins_name(lab, caplog):
    lab.plugin("whole", WHOLE.format(read="weight.sum().item()"))
    with caplog.at_level(logging.WARNING, "neoplug"):
        lab.run("run", adapter={"./whole.py:Whole": {}}, train={"max_steps": 1})
    (line,) = [record.getMessage() for record in caplog.records if "meta device" in record.getMessage()]
    assert line.startswith("`./whole.py:Whole` cannot run on the meta device (RuntimeError: Tensor.item() cannot")
    assert "loaded in float32" in line


@pytest.mark.parametrize(("hook", "section"), [("add_adapter", "adapter"), ("make_optimizer", "optimizer")])
def test_a_plugin_that_fails_in_the_dry_run_ends_it_before_weights_are_loaded(lab, monkeypatch, hook, section):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    lab.plugin(
        "odd",
        f"""
        @dataclass(eq=False)
        class Odd:
            @hookimpl
            def {hook}(self, model):
                raise ValueError("no such number")
    """,
    )
    with pytest.raises(PluginError, match=f"`./odd.py:Odd` failed in `{hook}`: ValueError: no such number") as caught:
        lab.run("run", **{section: {"./odd.py:Odd": {}}})
    assert f"at: {lab.folder / 'odd.py'}:" in str(caught.value)
    assert not (lab.folder / "run").exists()


def test_groups_that_do_not_cover_the_trainable_parameters_end_the_run_before_weights_are_loaded(lab, monkeypatch):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    lab.plugin(
        "odd",
        """
        @dataclass(eq=False)
        class Few:
            @hookimpl
            def param_groups(self, model, learning_rate):
                return [{"params": [next(p for p in model.parameters() if p.requires_grad)]}]

            @hookimpl
            def on_step_end(self):
                pass
    """,
    )
    with pytest.raises(RunError, match="must cover each trainable parameter exactly once"):
        lab.run("run", optimizer={"adamw": {}, "./odd.py:Few": {}})


META = torch.empty(3, 3, device="meta")


@pytest.mark.parametrize(
    "operation",
    [
        lambda: META.sum().item(), lambda: META.tolist(), lambda: META.numpy(), lambda: META.cpu(),
        lambda: bool(META.sum()), lambda: META.nonzero(), lambda: META + torch.ones(3, 3),
        lambda: torch.ones(3, 3).copy_(META), lambda: setattr(torch.nn.Parameter(META), "data", torch.ones(3, 3)),
        lambda: torch.nn.Linear(3, 3, device="meta").to("cpu"), lambda: META.unique(), lambda: torch.equal(META, META),
    ],
)  # fmt: skip
def test_torchs_errors_for_the_meta_device_are_recognised(operation):
    with pytest.raises((RuntimeError, TypeError)) as caught:
        operation()
    assert is_impossible_on_meta(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: torch.ones(2, 3) @ torch.ones(2, 3), lambda: torch.ones(2).view(3), lambda: torch.ones(2) + "a",
        lambda: {}["gone"], lambda: iter(None), lambda: META @ torch.empty(2, 2, device="meta"),
    ],
)  # fmt: skip
def test_other_errors_are_not_taken_for_errors_of_the_meta_device(operation):
    with pytest.raises((RuntimeError, TypeError, KeyError)) as caught:
        operation()
    assert not is_impossible_on_meta(caught.value)

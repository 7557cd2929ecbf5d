"""Runs that cannot work are refused with the reason, before weights are loaded where that is possible."""

import pytest
import torch

import neoplug
from neoplug.errors import RecipeError, RunError, UsageError
from neoplug.recipe import load
from neoplug.runs.directory import RunDir
from neoplug.runs.plan import plan
from neoplug.runs.preflight import validate_devices

ANSWERS = """
@dataclass(eq=False)
class Wrong:
    kind: str

    @hookimpl
    def token_loss(self, student, labels):
        surprise = -student.gather(-1, labels[:, None]).squeeze(-1)
        return {"mean": surprise.mean(), "none": None, "rows": student, "list": surprise.tolist()}[self.kind]


@dataclass(eq=False)
class Gradient:
    @hookimpl
    def token_loss(self, student, labels):
        return -student.gather(-1, labels[:, None]).squeeze(-1)

    @hookimpl
    def token_gradient(self, student, labels):
        return -student.gather(-1, labels[:, None]).squeeze(-1), student.exp().mean(0, keepdim=True)


@dataclass(eq=False)
class Meter:
    kind: str

    @hookimpl
    def on_step_end(self, step, model):
        if self.kind == "exit":
            raise SystemExit(0)
        if self.kind == "exit later":
            model.register_forward_pre_hook(lambda *_: exit(0))
            return {}
        if self.kind == "end":
            os._exit(0)
        if self.kind == "end later":
            model.register_forward_pre_hook(lambda *_: os._exit(0))
            return {}
        return {"loss": {"loss": 0.0}, "shape": {"norms": torch.ones(3)}}[self.kind]


@dataclass(eq=False)
class Unloadable:
    @hookimpl
    def on_step_end(self, step):
        return {}

    def state_dict(self):
        return {"path": Path("here")}

    def load_state_dict(self, state):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "none", "rows", "list"])
def test_a_loss_that_does_not_return_one_value_per_token_is_refused(lab, kind):
    lab.plugin("answers", ANSWERS)
    with pytest.raises(RunError, match=r"Wrong` answered `token_loss`[\s\S]*why:[\s\S]*fix:"):
        lab.run("run", loss={"./answers.py:Wrong": {"kind": kind}})
    assert lab.at("run").result["status"] == "failed"


def test_a_gradient_of_another_shape_is_refused(lab):
    lab.plugin("answers", ANSWERS)
    with pytest.raises(RunError, match="answered `token_gradient` with shape"):
        lab.run("run", loss={"./answers.py:Gradient": {}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", "`loss` from `on_step_end`, a name that is taken"),
        ("shape", r"the value `norms`, which is shape \[3\]"),
        ("exit", "`on_step_end`: SystemExit: 0"),
        ("exit later", r"sys.exit\(0\)"),
        ("end", "`on_step_end`: EndedProcess: it calls os._exit"),
        ("end later", r"it calls os._exit\nat: [^\n]*answers.py:\d+"),
    ],
)
def test_a_plugin_that_breaks_a_step_is_named(lab, kind, message):
    lab.plugin("answers", ANSWERS)
    with pytest.raises(RunError, match=message):
        lab.run("run", probes={"./answers.py:Meter": {"kind": kind}})
    assert lab.at("run").result["status"] == "failed"


def test_a_state_that_a_resumed_run_cannot_load_is_refused(lab):
    lab.plugin("answers", ANSWERS)
    message = r"state_dict of .* cannot be read back: it has .* at `\w[\w.]*`\nat: [^\n]*answers.py:\d+"
    with pytest.raises(RunError, match=message):
        lab.run("run", probes={"./answers.py:Unloadable": {}})


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_unavailable_device_is_refused(lab, role):
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: there is no npu device here"):
        lab.run("run", **{role: {"device": "npu"}})
    assert not (lab.folder / "run").exists()


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "npu:3"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_plan_refuses_an_unavailable_device_and_names_those_that_are_there(lab, role, device, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    message = rf"recipe.yaml:\d+:\d+: there is no {device} device here(.|\n)*: the devices here are cpu, cuda:0, cuda:1"
    checked = load(lab.recipe(**{role: {"device": device}}))
    with pytest.raises(RecipeError, match=message), checked.marking():
        plan(checked)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_available_devices_are_accepted(lab, device, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    validate_devices(load(lab.recipe(student={"device": device})).recipe)


def test_documents_longer_than_learned_positions_are_refused(lab, tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_positions=40, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the longest document has \d+ tokens.*made for 40"):
        lab.run("run", student={"model": str(tmp_path / "gpt2")}, adapter={"lora": {}})
    assert not (lab.folder / "run").exists()


def test_an_output_path_that_cannot_be_created_is_refused(lab):
    (lab.folder / "file").write_text("mine")
    with pytest.raises(UsageError, match="is no folder"):
        neoplug.run(lab.recipe(), output=lab.folder / "file" / "run")


def test_an_empty_folder_is_accepted_as_output(tmp_path):
    (tmp_path / "run").mkdir()
    recipe = {"student": {"model": "a"}, "data": {}, "adapter": {}, "loss": {}}
    assert RunDir.create(tmp_path / "run", recipe, {"format": 1}).resolved == recipe


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped(lab):
    whole = lab.run("whole")
    run = lab.run("run")
    (run.path / "result.json").unlink()
    (run.path / "checkpoints" / "step-6" / "state.json").write_text('{"form')
    again = lab.run("run", lab.folder / "run-recipe.yaml", resume=True)
    assert again.facts == whole.facts
    assert again.adapter_bytes == whole.adapter_bytes


def test_an_adapter_that_leaves_nothing_to_train_is_refused_before_weights_are_loaded(lab):
    with pytest.raises(UsageError, match="`osf` leaves nothing of the student to train"):
        lab.run("run", adapter={"osf": {"effective_rank": 10**5}})
    assert not (lab.folder / "run").exists()

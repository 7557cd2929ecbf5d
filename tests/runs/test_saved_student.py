"""A saved student is the measured student: adapters that cannot be saved are refused, and every run loads its files."""

import gc

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from neoplug.cli import main
from neoplug.errors import PluginError, RecipeError, RunError, UsageError
from neoplug.export.merge import export
from neoplug.export.staging import staged
from neoplug.runs import trainer
from neoplug.runs.progress import Silent
from neoplug.runs.remeasure import recipe_for_target, remeasure

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft
# A ladder network: a small network reads the states of the frozen layers, and its result is added before the head.
LADDER = """
from safetensors.torch import load_file, save_file


class Side(torch.nn.Module):
    def __init__(self, layers, size, width):
        super().__init__()
        self.down = torch.nn.ModuleList(torch.nn.Linear(size, width) for _ in range(layers))
        self.up = torch.nn.Linear(width, size)

    def remember(self, layer, given, states):
        self.states = [*self.states, states[0] if isinstance(states, tuple) else states]

    def forward(self, head, given):
        side = sum(torch.tanh(down(states.detach())) for down, states in zip(self.down, self.states))
        self.states = []
        return (given[0] + self.up(side),)


@dataclass(eq=False)
class Ladder:
    width: int = 8
    wrong_from: int = 0

    @hookimpl
    def add_adapter(self, model):
        with torch.random.fork_rng(), torch.device(model.device):
            torch.manual_seed(0)
            model.side = Side(len(model.model.layers), model.config.hidden_size, self.width)
        model.side.states, self.model, self.calls = [], model, 0
        for layer in model.model.layers:
            layer.register_forward_hook(model.side.remember)
        model.lm_head.register_forward_pre_hook(model.side)
        return model
"""
SAVES = """
    @hookimpl
    def save_adapter(self, model, path):
        assert model is self.model  # loading a copy has not changed the plugin that trains
        self.calls += 1
        scale = 0.5 if self.calls == self.wrong_from else 1
        save_file({name: scale * weight for name, weight in model.side.state_dict().items()}, path / "side.safetensors")
"""
LOADS = """
    @hookimpl
    def load_adapter(self, model, path):
        model = self.add_adapter(model)
        model.side.load_state_dict(load_file(path / "side.safetensors"))
        return model
"""
NAME = "./ladder.py:Ladder"
TAMPERS = """
@dataclass(eq=False)
class Tampers:
    file: str
    kind: str

    @hookimpl
    def on_train_end(self, result):
        from safetensors.torch import load_file, save_file

        file = Path(__file__).parent / self.file
        if self.kind == "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        else:
            save_file({name: 0.5 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
"""


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def ladder(module_lab):
    """Return a finished run with the ladder, and its recipe."""
    module_lab.plugin("ladder", LADDER + SAVES + LOADS)
    recipe = module_lab.recipe("ladder-recipe", adapter={NAME: {}})
    return module_lab.run("ladder", recipe), recipe


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("", r"in `add_adapter` added the module `side`(.|\n)*fix: implement `save_adapter` and `load_adapter`"),
        (SAVES, r"in `save_adapter` writes files that no hook reads(.|\n)*fix: implement `load_adapter` too"),
        (LOADS, r"in `load_adapter` reads files that no hook writes(.|\n)*fix: implement `save_adapter` too"),
    ],
)
def test_added_modules_need_both_hooks(lab, hooks, message, monkeypatch, capsys):
    lab.plugin("ladder", LADDER + hooks)
    recipe = lab.recipe(adapter={NAME: {}})
    with pytest.raises(PluginError, match=message) as caught:
        lab.run("run", recipe)
    method = {"": "add_adapter", SAVES: "save_adapter", LOADS: "load_adapter"}[hooks]
    lines = (lab.folder / "ladder.py").read_text().splitlines()
    line = 1 + next(at for at, text in enumerate(lines) if f"def {method}" in text)
    assert f"at: {lab.folder / 'ladder.py'}:{line}" in str(caught.value)
    assert not (lab.folder / "run").exists()
    monkeypatch.setattr("sys.argv", ["neoplug", "plan", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    assert str(caught.value).splitlines()[0] in capsys.readouterr().err


CHANGES = {
    "a parameter": "model.lm_head.gate = torch.nn.Parameter(torch.ones(1, device=model.device))",
    "a buffer": "model.register_buffer('scale', torch.ones(1, device=model.device))",
    "a wrapper": "model = torch.nn.ModuleDict({'model': model})",
    "an untied head": "model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())",
    "a renamed module": "model.norm, model.model.norm = model.model.norm, torch.nn.Identity()",
    "unknown on the meta device": "model.model.norm.weight.sum().item(); model.side = torch.nn.Linear(2, 2)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_base_keeps_its_names_where_the_whole_model_is_saved(lab, change):
    body = f"""
@dataclass(eq=False)
class Changes:
    @hookimpl
    def add_adapter(self, model):
        model.requires_grad_(True)
        {CHANGES[change]}
        return model
"""
    lab.plugin("changes", body)
    with pytest.raises(PluginError, match=r"in `add_adapter` (added|removed or renamed) the"):
        lab.run("run", adapter={"./changes.py:Changes": {}})
    assert not lab.at("run").steps_saved


def test_a_model_whose_names_are_the_bases_is_saved_whole(lab):
    body = """
@dataclass(eq=False)
class Norms:
    @hookimpl
    def add_adapter(self, model):
        for name, weight in model.named_parameters():
            weight.requires_grad_("norm" in name)
        return model
"""
    lab.plugin("norms", body)
    run = lab.run("run", adapter={"./norms.py:Norms": {}}, student={"dtype": "bfloat16"})
    stored = load_file(run.path / "checkpoints" / "step-6" / "trainable.safetensors")
    saved = load_file(run.path / "model" / "model.safetensors")
    assert stored
    assert all(torch.equal(saved[name], weight) for name, weight in stored.items())


def test_a_ladder_is_saved_and_evaluated_as_it_was_measured(ladder):
    run, recipe = ladder
    assert run.result["after"]["cross_entropy"] < run.result["before"]["cross_entropy"] - 0.1
    assert files(run.path / "adapter") == ["README.md", "side.safetensors"]
    found = remeasure(str(run.path), recipe_for_target(str(run.path), recipe), Silent())
    assert found["student"] == run.result["after"]


def test_a_ladder_is_resumed_bit_for_bit(module_lab, ladder):
    run, recipe = ladder
    again = module_lab.folder / "ladder-again"
    module_lab.run(again.name, recipe)
    (again / "result.json").unlink()
    for step in (4, 6):
        for file in (again / "checkpoints" / f"step-{step}").iterdir():
            file.unlink()
        (again / "checkpoints" / f"step-{step}").rmdir()
    resumed = module_lab.run(again.name, recipe, resume=True)
    assert resumed.facts == run.facts
    assert (again / "adapter" / "side.safetensors").read_bytes() == (
        run.path / "adapter" / "side.safetensors"
    ).read_bytes()


def test_a_ladder_is_not_merged_without_its_hook(ladder, tmp_path):
    with pytest.raises(UsageError, match=r"(?s)cannot be merged.*does not implement `merge_adapter`"):
        export(ladder[0].path, tmp_path / "out")


def test_a_ladder_is_pushed_with_its_own_files(ladder):
    pushed = staged(ladder[0].path, "me/ladder")
    assert {"side.safetensors", "README.md", "recipe.yaml", "lock.json"} <= set(pushed)
    card = pushed["README.md"].decode()
    assert "`load_adapter`" in card
    assert "peft" not in card.partition("## On held-out")[0]


def test_a_save_that_writes_other_weights_is_refused_before_the_first_step(lab):
    lab.plugin("ladder", LADDER + SAVES + LOADS)
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter that `./ladder.py:Ladder` trains is not"):
        lab.run("run", adapter={NAME: {"wrong_from": 1}})
    assert not (lab.folder / "run" / "metrics.jsonl").exists()


def test_a_save_that_writes_other_weights_at_the_end_does_not_finish_the_run(lab):
    lab.plugin("ladder", LADDER + SAVES + LOADS)
    recipe = lab.recipe(adapter={NAME: {"wrong_from": 2}})
    with pytest.raises(
        RunError, match=r"is not the one that was measured: .* differ by [\d.]+ of the largest"
    ) as caught:
        lab.run("run", recipe)
    assert "`./ladder.py:Ladder` saves other weights than it trains" in str(caught.value)
    run = lab.at("run")
    assert run.result["status"] == "failed"
    assert files(run.path / "adapter") == ["side.safetensors"]
    with pytest.raises(UsageError, match="is not finished"):
        export(run.path, lab.folder / "out")
    lab.plugin("ladder", LADDER + SAVES.replace("self.wrong_from", "-1") + LOADS)
    assert lab.run("run", recipe, resume=True).result["status"] == "completed"


@pytest.mark.parametrize(
    ("adapter", "file"), [("full", "model/model.safetensors"), ("lora", "adapter/adapter_model.safetensors")]
)
@pytest.mark.parametrize(
    ("kind", "message"), [("halved", "not the one that was measured"), ("truncated", "cannot be|could not be|cannot")]
)
def test_damaged_files_do_not_finish_the_run(lab, adapter, file, kind, message):
    lab.plugin("tampers", TAMPERS)
    with pytest.raises(RunError, match=message):
        lab.run(
            "run", adapter={adapter: {}}, treatments={"./tampers.py:Tampers": {"file": f"run/{file}", "kind": kind}}
        )
    assert lab.at("run").result["status"] == "failed"
    assert (lab.folder / "run" / file).is_file()


def models_and_optimizers():
    gc.collect()
    kinds = (PreTrainedModel, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    return {id(one): type(one).__name__ for one in gc.get_objects() if issubclass(type(one), kinds)}


def test_teacher_student_and_optimizer_are_freed_before_the_saved_student_is_loaded(lab, monkeypatch):
    compare, before, left = trainer.validate_saved_student, models_and_optimizers(), []

    def counting(*arguments):
        left.append({at: name for at, name in models_and_optimizers().items() if at not in before})
        compare(*arguments)

    monkeypatch.setattr(trainer, "validate_saved_student", counting)
    lab.run("run", evaluate={"eval_steps": 2, "metric_for_best_model": "forward_kl", "load_best_model_at_end": True})
    assert left == [{}]


def test_a_change_after_loading_is_not_made_twice_to_a_model_that_is_saved_whole(lab):
    body = """
@dataclass(eq=False)
class Doubles:
    @hookimpl
    def after_load(self, model, role):
        if role == "student":
            with torch.no_grad():
                model.model.norm.weight.mul_(2)
"""
    lab.plugin("doubles", body)
    recipe = lab.recipe(adapter={"full": {}}, treatments={"./doubles.py:Doubles": {}})
    run = lab.run("run", recipe)
    found = remeasure(str(run.path), recipe_for_target(str(run.path), recipe), Silent())
    assert found["student"] == run.result["after"]


def test_an_adapter_of_peft_with_files_that_nothing_reads_is_refused_before_the_first_step(lab):
    body = """
from peft import LoraConfig, get_peft_model

@dataclass(eq=False)
class Odd:
    @hookimpl
    def add_adapter(self, model):
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))

    @hookimpl
    def save_adapter(self, model, path):
        (path / "odd.txt").write_text("odd")
"""
    lab.plugin("odd", body)
    with pytest.raises(UsageError, match=r"`./odd.py:Odd` does not implement `load_adapter`"):
        lab.run("run", adapter={"./odd.py:Odd": {}})

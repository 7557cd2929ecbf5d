"""`neoplug eval` of a finished run gives the run's own metrics, bit for bit, and changes no file."""

import json
import shutil
from pathlib import Path

import pytest

from neoplug.errors import RecipeError, UsageError
from neoplug.runs.progress import Silent
from neoplug.runs.remeasure import recipe_for_target, remeasure

OWN = """
@dataclass(eq=False)
class Own:
    '''A bias in a form of its own: only its plugin could read it.'''

    @hookimpl
    def add_adapter(self, model):
        layer = model.model.layers[0].self_attn.q_proj
        layer.register_parameter("own", torch.nn.Parameter(torch.zeros(layer.out_features)))
        layer.register_forward_hook(lambda layer, given, answer: answer + layer.own)
        return model

    @hookimpl
    def save_adapter(self, model, path):
        torch.save(model.model.layers[0].self_attn.q_proj.own.data, path / "own.pt")

    @hookimpl
    def load_adapter(self, model, path):
        model = self.add_adapter(model)
        model.model.layers[0].self_attn.q_proj.own.data = torch.load(path / "own.pt")
        return model
"""


def evaluate(target, recipe, *overrides):
    return remeasure(str(target), recipe_for_target(str(target), recipe, overrides), Silent())


def listing(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def questions(module_lab):
    file = module_lab.folder / "sums.jsonl"
    rows = [
        {"query": f"What is {n} plus {n}?", "choices": [f"It is {m}." for m in (n, 2 * n)], "gold": 1} for n in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"multiple_choice": {"tasks": file.name}, "calibration": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"student": {"model": "TEACHER", "prepare": {"prune_depth": {"num_hidden_layers": 3}}}},
        pytest.param({"adapter": {"full": {}}, "student": {"dtype": "bfloat16"}}, marks=pytest.mark.slow),
        pytest.param({"adapter": {"./own.py:Own": {}}}, marks=pytest.mark.slow),
        {"adapter": {"dora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}, "student": {"dtype": "bfloat16"}},
    ],
    ids=["prepared", "whole", "own", "bf16"],
)
def test_a_finished_run_is_evaluated_with_the_same_result(module_lab, tiny_teacher, questions, sections, request):
    module_lab.plugin("own", OWN)
    if sections.get("student", {}).get("model"):
        sections["student"]["model"] = str(tiny_teacher)
    name = request.node.callspec.id
    recipe = module_lab.recipe(f"{name}-recipe", probes=questions, **{"train": {"max_steps": 2}, **sections})
    run = module_lab.run(name, recipe)
    before = listing(run.path)
    found = evaluate(run.path, recipe)
    assert found["student"] == run.result["after"]
    assert found["teacher"] == run.result["teacher"]
    assert found["student"] != run.result["before"]
    assert found["student"]["probes"]["multiple_choice"]["sums"]["questions"] == 6
    assert listing(run.path) == before


def test_another_recipe_evaluates_the_runs_student(module_lab, tiny_teacher, tiny_chat):
    """The recipe's text and teacher are used; its student, adapter and training are not."""
    run = module_lab.run("own-student", train={"max_steps": 2})
    other = module_lab.folder / "other.yaml"
    other.write_text(
        f"student: {{model: {tiny_teacher}, dtype: bfloat16, prepare: {{prune_depth: {{num_hidden_layers: 1}}}}}}\n"
        f"teacher: {{model: {tiny_teacher}, dtype: float32}}\n"
        f"data: {{source: {tiny_chat}, max_length: 160, held_out: 3}}\n"
        "adapter: {full: {}}\nloss: {cross_entropy: {}}\n"
    )
    assert evaluate(run.path, other)["student"] == run.result["after"]
    without_teacher = evaluate(run.path, other, "teacher=null")
    assert without_teacher["teacher"] == {}
    assert without_teacher["student"]["perplexity"] == run.result["after"]["perplexity"]


@pytest.mark.slow
def test_any_model_is_evaluated(module_lab, tiny_student, tiny_teacher):
    cut = {"model": str(tiny_teacher), "prepare": {"prune_depth": {"num_hidden_layers": 3}}}
    run = module_lab.run("models", train={"max_steps": 1}, student=cut)
    recipe = module_lab.folder / "models-recipe.yaml"
    itself = evaluate(tiny_teacher, recipe)
    assert itself["student"]["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert itself["student"]["perplexity"] == pytest.approx(run.result["teacher"]["perplexity"])
    whole = module_lab.run("uncut", train={"max_steps": 1})
    assert evaluate(tiny_student, recipe)["student"] == whole.result["before"]


def test_a_target_that_cannot_be_evaluated_is_refused(lab, tmp_path, tiny_teacher):
    run = lab.run("run", train={"max_steps": 1})
    recipe = lab.folder / "run-recipe.yaml"
    result = run.result
    (run.path / "contents.json").unlink()  # it has the hash of the result
    (run.path / "result.json").write_text(json.dumps({**result, "status": "interrupted"}))
    with pytest.raises(UsageError, match="is not finished, so there is no student"):
        evaluate(run.path, recipe)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is neither a run nor a model"):
        evaluate(tmp_path / "empty", recipe)
    teacher = Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))
    words = json.loads((teacher / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (teacher / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(RecipeError, match="do not share a vocabulary"):
        evaluate(teacher, recipe)

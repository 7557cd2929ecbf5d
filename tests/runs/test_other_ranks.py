"""A checkpoint of any number of ranks and micro-batches resumes on another with as many rows in a step."""

import pytest
import torch
from safetensors.torch import load_file

from neoplug.errors import UsageError
from neoplug.reproduction.original import open_original
from neoplug.runs.global_batch import GlobalBatch
from tests.commands import start_ranks
from tests.runs.conftest import cut

SIZES = {  # of 4 rows in a step
    1: {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    2: {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
}
TAUGHT = {
    "loss": {"taid": {"weight": 0.5}, "cross_entropy": {"calibrate": "reverse_kl"}},
    "treatments": {"label_noise": {"probability": 0.3}, "token_dropout": {"probability": 0.3}},
    "token_weights": {"student_confidence": {}},
    "stops": {"loss_spike": {}, "time_budget": {"hours": 9}},
}
ITSELF = {"teacher": {"model": None, "dtype": None, "self": "ema", "decay": 0.6}, "adapter": {"lora_fa": {"r": 4}}}
COUNTS = """
@dataclass(eq=False)
class Counts:
    '''Counts the rows of its rank.'''

    def __post_init__(self):
        self.rows = 0

    @hookimpl
    def edit_batch(self, batch):
        self.rows += 1

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]
"""


def run_on(ranks, lab, output, *options, **sections):
    """Run a recipe on so many ranks; return the run."""
    train = {"max_steps": 5, "learning_rate": 0.005, **SIZES[ranks]}
    recipe = lab.recipe(f"{output}-{ranks}", train=train, **sections)
    words = ("run", recipe, "--output", lab.folder / output, *options)
    ended = [rank.end() for rank in start_ranks(ranks, *words)]
    assert not any(rank.exitcode for rank in ended), "\n".join(rank.err for rank in ended)
    return lab.at(output)


def check_equal(found, expected):
    """Compare lines, results and weights of two runs, up to the noise of float32."""
    assert [line["step"] for line in found.lines] == [line["step"] for line in expected.lines]
    for ours, theirs in zip(found.lines, expected.lines, strict=True):
        assert (ours["tokens"], ours["answer_tokens"]) == (theirs["tokens"], theirs["answer_tokens"])
        assert ours["learning_rate"] == theirs["learning_rate"]
        for key in ("losses", "weights"):
            assert ours.get(key, {}) == pytest.approx(theirs.get(key, {}), rel=1e-4, abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    for key in ("before", "after"):
        ours, theirs = ({**run.result[key], "probes": 0} for run in (found, expected))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for name, tensor in expected.adapter.items():
        torch.testing.assert_close(found.adapter[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sections", [TAUGHT, ITSELF], ids=["taught", "by itself"])
def test_a_run_of_two_ranks_goes_on_on_one_and_back(lab, sections):
    if "teacher" in sections:
        lab.base["teacher"] = {key: value for key, value in sections["teacher"].items() if value is not None}
        sections = {key: value for key, value in sections.items() if key != "teacher"}
    whole = run_on(1, lab, "whole", **sections)
    run = run_on(2, lab, "run", **sections)
    assert "dealt_anew" not in run.result
    for step, ranks in ((2, 1), (4, 2)):
        cut(run, step)
        run = run_on(ranks, lab, "run", "--resume", **sections)
        check_equal(run, whole)
        if "teacher" in run.result:
            assert run.result["teacher"]["cross_entropy"] == pytest.approx(
                whole.result["teacher"]["cross_entropy"], rel=1e-4
            )
    assert run.result["dealt_anew"] == [{"step": 2, "ranks": 1, **SIZES[1]}, {"step": 4, "ranks": 2, **SIZES[2]}]
    assert any("resumed after step 2 and 4" in remark and "dropout" in remark for remark in run.result["remarks"])
    log = (run.path / "log.txt").read_text()
    assert "from step 2 on, the same rows of a step are dealt to 1 x 4 micro-batches of 1 row; before: 2 x 1" in log
    if (average := run.path / "checkpoints/step-5/average.safetensors").exists():
        ours, theirs = load_file(average), load_file(whole.path / "checkpoints/step-5/average.safetensors")
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_states_of_a_plugin_that_differ_between_ranks_are_named(lab):
    lab.plugin("counts", COUNTS)
    sections = {"treatments": {"./counts.py:Counts": {}}, "data": {"held_out": 3, "max_rows": 10}}
    run = run_on(2, lab, "run", **sections)  # 7 rows: ranks have different numbers of them
    cut(run, 2)
    run_on(1, lab, "run", "--resume", **sections)
    assert "`./counts.py:Counts` had another state on each process" in (run.path / "log.txt").read_text()


def test_a_base_that_is_computed_from_batches_stays_that_of_the_start(lab):
    """LoRA-GA changes the base by the gradient of the first micro-batches, which have other rows now."""
    sections = {"adapter": {"lora_ga": {"r": 4, "batches": 1}}}
    whole = lab.run("whole", **sections)
    run = lab.run("run", **sections)
    cut(run, 2)
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    run = lab.run("run", resume=True, train=sizes, **sections)
    check_equal(run, whole)
    (difference,) = open_original(run.path).differences(run.lock)  # a replay in one piece is equal up to rounding
    assert (difference.kind, difference.locked) == ("ranks", "1 x 4 micro-batches of 1 row")


def test_another_global_batch_is_refused_before_a_model_is_read(lab, monkeypatch):
    cut(lab.run("run", train={"max_steps": 2, "save_steps": 1}), 1)
    monkeypatch.setattr("neoplug.runs.execute.resolve_inputs", None)
    with pytest.raises(UsageError) as refused:
        lab.run("run", resume=True, train={"max_steps": 2, "save_steps": 1, "gradient_accumulation_steps": 3})
    what, _, fix = str(refused.value).split("\n")
    assert "trains on 4 rows in each step (processes x micro-batches: 1 x 2 micro-batches of 2 rows)" in what
    assert "a step has 6 (1 x 3 micro-batches of 2 rows)" in what
    assert fix == "fix: set train.gradient_accumulation_steps=2, or start a new run"


def test_any_other_change_is_refused_still(lab):
    cut(lab.run("run", train={"max_steps": 2, "save_steps": 1}), 1)
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    with pytest.raises(UsageError, match=r"the recipe changed.*\n  train.learning_rate: 0.01 -> 0.02\nwhy"):
        lab.run("run", resume=True, train={"max_steps": 2, "save_steps": 1, "learning_rate": 0.02, **sizes})


@pytest.mark.parametrize(
    ("ranks", "size", "fix"),
    [
        (2, 4, "set train.gradient_accumulation_steps=3"),
        (2, 5, "set train.per_device_train_batch_size=1 and train.gradient_accumulation_steps=12"),
        (5, 1, "resume on a number of processes that divides 24"),
    ],
)
def test_the_fix_has_as_many_rows(ranks, size, fix, tmp_path):
    begun = GlobalBatch(ranks=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    now = GlobalBatch(ranks=ranks, per_device_train_batch_size=size, gradient_accumulation_steps=7)
    with pytest.raises(UsageError, match=f"fix: {fix}, or start a new run"):
        now.validate_same_rows(begun, tmp_path)

"""Answers of hooks in whole runs: a wrong one ends the run before anything is lost, with plugin, hook and place."""

import re

import pytest

from neoplug.errors import RunError, UsageError

PLUGINS = """
@dataclass(eq=False)
class Probe:
    '''Returns the losses of all tokens as a tensor, or numbers of numpy and torch.'''

    kind: str

    @hookimpl
    def on_evaluate(self, model, batches, predict):
        import numpy

        losses = torch.cat([-log_q.gather(-1, t[:, None])[:, 0] for b in batches for log_q, t in predict(model, b)])
        if self.kind == "tensor":
            return {"losses": losses}
        return {"mean": losses.mean(), "tokens": numpy.int64(len(losses)), "pair": (losses.mean().numpy(), None)}


@dataclass(eq=False)
class NoGradient:
    @hookimpl
    def token_loss(self, student, labels):
        return -student.detach().gather(-1, labels[:, None])[:, 0]


@dataclass(eq=False)
class Adapter:
    kind: str

    @hookimpl
    def add_adapter(self, model):
        for name, weight in model.named_parameters():
            weight.requires_grad_("norm" in name)
        return None if self.kind == "none" else model

    @hookimpl
    def save_adapter(self, model, path):
        return None

    @hookimpl
    def load_adapter(self, model, path):
        return model


@dataclass(eq=False)
class Optimizer:
    kind: str

    @hookimpl
    def make_optimizer(self, groups):
        if self.kind == "none":
            return None
        return torch.optim.SGD([dict(groups[0], params=groups[0]["params"][:-1])])


@dataclass(eq=False)
class Penalty:
    kind: str

    @hookimpl
    def penalty(self, model):
        return {"none": None, "float": 0.5, "list": [0.5], "constant": torch.tensor(0.5)}[self.kind]


@dataclass(eq=False)
class Edit:
    kind: str

    @hookimpl
    def edit_batch(self, batch):
        if self.kind == "returned":
            from dataclasses import replace

            return replace(batch, labels=batch.labels.clone())
        if self.kind == "masked":
            batch.labels[0] = -100
        if self.kind == "moved":
            batch.positions = batch.positions - 1


@dataclass(eq=False)
class Result:
    @hookimpl
    def on_train_end(self, result):
        result["norms"] = torch.ones(3)
"""
LATE = """
@dataclass(eq=False)
class Late:
    @hookimpl
    def on_step_end(self, step):
        if step == 2:
            raise RuntimeError("late")
"""
CASES = {
    "probe": ({"probes": {"./answers.py:Probe": {"kind": "tensor"}}}, "on_evaluate", r"`losses`, which is shape"),
    "loss": ({"loss": {"./answers.py:NoGradient": {}}}, "token_loss", "without a gradient"),
    "one of two losses": (
        {"loss": {"./answers.py:NoGradient": {}, "cross_entropy": {}}}, "token_loss", "without a gradient",
    ),
    "adapter": ({"adapter": {"./answers.py:Adapter": {"kind": "none"}}}, "add_adapter", "None, where a torch"),
    "optimizer": ({"optimizer": {"./answers.py:Optimizer": {"kind": "none"}}}, "make_optimizer", "None, where a torch"),
    "a part": ({"optimizer": {"./answers.py:Optimizer": {"kind": "part"}}}, "make_optimizer", r"lacks 1 of the \d+ te"),
    "penalty": ({"treatments": {"./answers.py:Penalty": {"kind": "none"}}}, "penalty", "None, where a scalar tensor"),
    "number": ({"treatments": {"./answers.py:Penalty": {"kind": "float"}}}, "penalty", "a float, where a scalar"),
    "list": ({"treatments": {"./answers.py:Penalty": {"kind": "list"}}}, "penalty", "a list, where a scalar tensor"),
    "constant": ({"treatments": {"./answers.py:Penalty": {"kind": "constant"}}}, "penalty", "without a gradient"),
    "returned batch": ({"treatments": {"./answers.py:Edit": {"kind": "returned"}}}, "edit_batch", "nothing is read"),
    "masked label": ({"treatments": {"./answers.py:Edit": {"kind": "masked"}}}, "edit_batch", "-100 in `labels`"),
    "moved": (
        {"treatments": {"./answers.py:Edit": {"kind": "moved"}}, "token_weights": {"position": {}}}, "edit_batch",
        "which predicted no answer token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_answer_ends_the_run_before_its_first_update(lab, case):
    lab.plugin("answers", PLUGINS)
    sections, hook, fault = CASES[case]
    with pytest.raises(RunError, match=rf"the plugin `./answers.py:\w+` .*`{hook}`") as caught:
        lab.run("run", **sections)
    what, place, why, fix = str(caught.value).splitlines()
    assert re.search(fault, what)
    file, line = place.removeprefix("at: ").rsplit(":", 1)
    assert f"def {hook}(" in (lab.folder / "answers.py").read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert file == str(lab.folder / "answers.py")
    assert (why[:5], fix[:5]) == ("why: ", "fix: ")
    assert not (lab.folder / "run" / "adapter").exists()
    assert not (lab.folder / "run" / "metrics.jsonl").exists()


def test_numbers_of_numpy_and_torch_are_read(lab):
    lab.plugin("answers", PLUGINS)
    run = lab.run("run", probes={"./answers.py:Probe": {"kind": "numbers"}}, train={"max_steps": 2})
    for when in ("before", "after"):
        probe = run.result[when]["probes"]["./answers.py:Probe"]
        assert probe["mean"] == pytest.approx(run.result[when]["cross_entropy"], rel=1e-5)
        assert probe["pair"] == [probe["mean"], None]
        assert isinstance(probe["tokens"], int)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"./answers.py:Adapter": {"kind": "empty"}}}, "in `save_adapter` wrote no file into `path`"),
        ({"treatments": {"./answers.py:Result": {}}}, r"the value `norms`, which is shape \[3\]"),
    ],
)
def test_what_a_plugin_leaves_at_the_end_is_checked(lab, sections, message):
    lab.plugin("answers", PLUGINS)
    with pytest.raises(RunError, match=message):
        lab.run("run", **sections, train={"max_steps": 1})


@pytest.fixture
def failed(lab):
    """Return the folder of a run that failed before its first step."""
    lab.plugin("answers", PLUGINS)
    with pytest.raises(RunError):
        lab.run("run", treatments={"./answers.py:Penalty": {"kind": "none"}})
    return lab.folder / "run"


def test_the_folder_of_a_run_that_failed_before_its_first_step_is_used_again(lab, failed):
    run = lab.run("run", train={"max_steps": 1})
    assert run.result["status"] == "completed"
    assert "Penalty" not in (failed / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="holds a run already"):
        lab.run("run", train={"max_steps": 1})


def test_a_folder_with_another_file_is_not_used_again(lab, failed):
    (failed / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds a run already"):
        lab.run("run", train={"max_steps": 1})
    assert (failed / "notes.txt").read_text() == "mine"


def test_the_folder_of_a_run_that_failed_after_a_step_is_not_used_again(lab):
    lab.plugin("late", LATE)
    with pytest.raises(RunError, match="late"):
        lab.run("run", probes={"./late.py:Late": {}}, train={"logging_steps": 1})
    assert len(lab.at("run").lines) == 1
    with pytest.raises(UsageError, match="holds a run already"):
        lab.run("run")

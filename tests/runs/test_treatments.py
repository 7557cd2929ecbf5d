"""Effects of plugins on a run other than losses: edited batches, additional metrics, penalties."""

import pytest
import torch

EDITS = """
@dataclass(eq=False)
class Halve:
    '''Keeps the first half of the answer tokens of each row.'''

    @hookimpl
    def edit_batch(self, batch):
        keep = len(batch.labels) // 2
        batch.positions, batch.labels, batch.rows = batch.positions[:keep], batch.labels[:keep], batch.rows[:keep]


@dataclass(eq=False)
class Constant:
    '''All labels become one token.'''

    token: int

    @hookimpl
    def edit_batch(self, batch):
        batch.labels = torch.full_like(batch.labels, self.token)
"""
LABELS = """
@dataclass(eq=False)
class LabelIs:
    '''0 where the label is the token, 1 elsewhere; no gradient.'''

    token: int

    @hookimpl
    def token_loss(self, student, labels):
        return (labels != self.token).float() + 0 * student.sum(-1)
"""
METRICS = """
@dataclass(eq=False)
class Measures:
    @hookimpl
    def on_step_end(self, step, model, metrics):
        return {"half_step": step / 2, "norm_again": metrics["grad_norm"] * 1, "size": torch.tensor(7)}
"""
WEIGHT_PENALTY = """
@dataclass(eq=False)
class Ridge:
    '''Half the squared norm of all trainable parameters, times a strength.'''

    strength: float
    folder: str

    @hookimpl
    def penalty(self, model):
        trained = [p for p in model.parameters() if p.requires_grad]
        return self.strength * sum(p.square().sum() for p in trained) / 2

    @hookimpl
    def on_step_end(self, step, model):
        found = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters() if p.requires_grad}
        torch.save(found, Path(self.folder) / f"{step}.pt")
"""
ZERO_LOSS = """
@dataclass(eq=False)
class Nothing:
    @hookimpl
    def token_loss(self, student):
        return 0 * student.sum(-1)
"""


def test_training_uses_the_edited_batch(lab):
    lab.plugin("edits", EDITS)
    lab.plugin("labels", LABELS)
    loss = {"./labels.py:LabelIs": {"token": 9}, "cross_entropy": {}}
    plain = lab.run("plain", loss=loss, train={"max_steps": 2})
    assert all(line["losses"]["./labels.py:LabelIs"] > 0.5 for line in plain.lines)
    treatments = {"./edits.py:Constant": {"token": 9}, "./edits.py:Halve": {}}
    train = {"max_steps": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 1}
    run = lab.run("run", loss=loss, treatments=treatments, train=train)
    for line in run.lines:
        assert line["losses"]["./labels.py:LabelIs"] == 0
    whole = lab.run("whole", loss=loss, train=train)
    assert [line["answer_tokens"] for line in run.lines] == [line["answer_tokens"] // 2 for line in whole.lines]
    assert [line["tokens"] for line in run.lines] == [line["tokens"] for line in whole.lines]


def test_metrics_of_plugins_are_in_the_line_of_their_step(lab):
    lab.plugin("measures", METRICS)
    run = lab.run("run", probes={"./measures.py:Measures": {}}, train={"max_steps": 4, "logging_steps": 3})
    for line in run.lines:
        assert line["half_step"] == line["step"] / 2
        assert line["norm_again"] == line["grad_norm"]
        assert line["size"] == 7


def test_a_penalty_is_a_separate_field_and_its_gradient_is_applied(lab):
    """With no other gradient, plain gradient descent shrinks each weight by (1 - rate * strength) a step."""
    lab.plugin("ridge", WEIGHT_PENALTY)
    lab.plugin("nothing", ZERO_LOSS)
    run = lab.run(
        "run",
        loss={"./nothing.py:Nothing": {}},
        treatments={"./ridge.py:Ridge": {"strength": 0.5, "folder": str(lab.folder)}},
        optimizer={"sgd": {}},
        train={
            "max_steps": 3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "learning_rate": 0.1,
            "gradient_accumulation_steps": 3,
        },
    )  # fmt: skip
    after = {step: torch.load(lab.folder / f"{step}.pt") for step in (1, 2, 3)}
    start = {name: weight.double() / 0.95 for name, (weight, _) in after[1].items()}
    for line in run.lines:
        shrunk = {name: weight * 0.95 ** (line["step"] - 1) for name, weight in start.items()}
        squares = sum(weight.square().sum().item() for weight in shrunk.values())
        assert line["loss"] == 0
        assert line["losses"] == {"./nothing.py:Nothing": 0}
        assert line["penalty"] == pytest.approx(0.25 * squares, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(0.5 * squares**0.5, rel=1e-5)
        for name, (weight, gradient) in after[line["step"]].items():
            torch.testing.assert_close(gradient.double(), 0.5 * shrunk[name], rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(weight.double(), 0.95 * shrunk[name], rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_penalties_add_up_and_do_not_change_the_loss(lab):
    lab.plugin("ridge", WEIGHT_PENALTY)
    plain = lab.run("plain", train={"max_steps": 1})
    ridges = {f"./ridge.py:Ridge@{name}": {"strength": 0.5, "folder": str(lab.folder)} for name in "ab"}
    two = lab.run("two", train={"max_steps": 1}, treatments=ridges)
    one = lab.run(
        "one", train={"max_steps": 1}, treatments={"./ridge.py:Ridge": {"strength": 1.0, "folder": str(lab.folder)}}
    )
    assert "penalty" not in plain.lines[0]
    assert two.lines[0]["losses"] == plain.lines[0]["losses"]
    assert two.lines[0]["loss"] == plain.lines[0]["loss"]
    assert two.lines[0]["penalty"] == pytest.approx(one.lines[0]["penalty"], rel=1e-6)
    assert two.lines[0]["grad_norm"] == pytest.approx(one.lines[0]["grad_norm"], rel=1e-6)
    assert two.lines[0]["grad_norm"] != plain.lines[0]["grad_norm"]

"""The conformance tests accept correct losses, and reject losses with faults that real libraries have had."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from neoplug import Formula
from neoplug.testing import LOSS, check_loss, examine


class Jeffreys:
    """A correct loss without a closed form."""

    def token_loss(self, student, teacher):
        return ((teacher.exp() - student.exp()) * (teacher - student)).sum(-1) / 2


class TakesAllArguments:
    def token_loss(self, student, teacher, labels, progress):
        return (1 + progress) * (teacher.exp() * (teacher - student)).sum(-1)


class InFloat32:
    """Its values are too coarse for small steps of finite differences, so the test takes larger ones."""

    def token_loss(self, student, teacher):
        return Jeffreys().token_loss(student.float(), teacher.float())


class ForwardKL:
    """The correct loss that most of the faults below vary."""

    def token_loss(self, student, teacher):
        return (teacher.exp() * (teacher - student)).sum(-1)


class WithoutEntropy:
    def token_loss(self, student, teacher):
        return -(teacher.exp() * student).sum(-1)


class LogOfSoftmax:
    def token_loss(self, student, teacher):
        p, q = teacher.exp(), student.exp()
        return (p * (p / q).log()).sum(-1)


class MeanOverTokens(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student, teacher).mean()


class DividesByTokens(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student, teacher) / max(1, len(student))


class SoftmaxOverTheBatch:
    def token_loss(self, student, teacher):
        p, q = teacher.exp(), student.exp()
        return (p / p.sum() * (p - q)).square().sum(-1)


class CountsCalls(ForwardKL):
    """Its scale grows with each call."""

    calls = 0

    def token_loss(self, student, teacher):
        self.calls += 1
        return self.calls * super().token_loss(student, teacher)


class HalfPrecision(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student, teacher).half()


class Negative(ForwardKL):
    def token_loss(self, student, teacher):
        return -super().token_loss(student, teacher)


class WritesIntoTheTeacher(ForwardKL):
    def token_loss(self, student, teacher):
        loss = super().token_loss(student, teacher)
        teacher.zero_()
        return loss


class WritesIntoTheStudent(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student.sub_(1), teacher)


class ReturnsNone(ForwardKL):
    def token_gradient(self, student, teacher):
        return None


class GradientToTheTeacher(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student, teacher.requires_grad_())


class ScalesOnlyTheValue:
    def token_loss(self, student, teacher):
        p, q = ((z / 2).log_softmax(-1) for z in (teacher, student))
        return 4 * (p.exp() * (p - q)).sum(-1)

    def token_gradient(self, student, teacher):
        p, q = ((z / 2).log_softmax(-1) for z in (teacher, student))
        return 4 * (p.exp() * (p - q)).sum(-1), (q.exp() - p.exp()) / 2


class WrongSign(ForwardKL):
    def token_gradient(self, student, teacher):
        return self.token_loss(student, teacher), teacher.exp() - student.exp()


class GradientOfLogProbabilities(ForwardKL):
    def token_gradient(self, student, teacher):
        return self.token_loss(student, teacher), -teacher.exp()


class WrongFormula(ForwardKL):
    formula = Formula(student=1, share=1)


class CrashesWithoutTokens(ForwardKL):
    def token_loss(self, student, teacher):
        return super().token_loss(student, teacher) + 0 * student.max()


class StopsAGradient:
    def token_loss(self, student, teacher):
        weight = torch.sigmoid(teacher - student).detach()
        forward, reverse = teacher.exp() * (teacher - student), student.exp() * (student - teacher)
        return (weight * forward + (1 - weight) * reverse).sum(-1)


class StopsAGradientOnPurpose(StopsAGradient):
    exempt: ClassVar = {"finite_differences": "the weights are constants"}


class Reward:
    """Its exemptions depend on an option, so `exempt` is a property."""

    def __init__(self, sign):
        self.sign = sign

    @property
    def exempt(self):
        return (
            {"not_negative": "the student is rewarded", "zero_where_equal": "for its entropy"} if self.sign < 0 else {}
        )

    def token_loss(self, student, teacher):
        return -(student.exp() * -student).sum(-1) if self.sign < 0 else Jeffreys().token_loss(student, teacher)


@pytest.mark.parametrize(
    "loss",
    [Jeffreys(), TakesAllArguments(), InFloat32(), StopsAGradientOnPurpose(), Reward(-1), Reward(1)],
    ids=lambda value: type(value).__name__,
)
def test_correct_losses_pass(loss):
    check_loss(loss, max_examples=5)


QUICK = replace(LOSS, once={})  # a large vocabulary takes longest
FAULTS = {
    CrashesWithoutTokens: {"no_tokens"},
    DividesByTokens: {"chunks", "splits"},
    GradientOfLogProbabilities: {"shift", "closed_form"},
    HalfPrecision: {"shape"},
    LogOfSoftmax: {"finite", "large_vocabulary"},
    MeanOverTokens: {"shape"},
    Negative: {"not_negative"},
    ScalesOnlyTheValue: {"closed_form"},
    SoftmaxOverTheBatch: {"chunks", "splits"},
    StopsAGradient: {"finite_differences"},
    GradientToTheTeacher: {"teacher_gradient"},
    WithoutEntropy: {"zero_where_equal"},
    ReturnsNone: {"shape"},
    WritesIntoTheStudent: {"inputs_untouched", "shape"},
    WritesIntoTheTeacher: {"inputs_untouched", "masked", "splits", "teacher_gradient"},  # the objective refuses it
    WrongFormula: {"formula"},
    WrongSign: {"closed_form"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_breaks_exactly_the_expected_properties(fault):
    kit = LOSS if "large_vocabulary" in FAULTS[fault] else QUICK
    broken = {one.name: one for one in examine(fault(), kit, max_examples=8) if one.verdict == "does not hold"}
    assert set(broken) == FAULTS[fault]
    for one in broken.values():
        assert one.name == "large_vocabulary" or len(one.example) <= 2
        assert one.name == "large_vocabulary" or one.example.student.shape[1] == 2


def test_a_loss_that_changes_between_calls_is_reported():
    verdicts = {one.name: one.verdict for one in examine(CountsCalls(), QUICK, max_examples=5)}
    assert verdicts["chunks"] == verdicts["splits"] == "does not hold"


def test_only_exemptible_properties_can_be_declared():
    loss = Jeffreys()
    loss.exempt = {"finite_diferences": "it is misspelt"}
    with pytest.raises(ValueError, match="did you mean `finite_differences`"):
        check_loss(loss)


def test_the_smallest_example_is_printed():
    with pytest.raises(AssertionError, match="student = teacher") as caught:
        check_loss(WithoutEntropy())
    assert "student=tensor([[0., 0.]])" in "".join(caught.value.__notes__)

"""The kit must turn away losses with the faults that real libraries had, and let right ones pass."""

from typing import ClassVar

import pytest
import torch

from neoplug.testing import check_loss


class Jeffreys:
    """A right loss, without a closed form."""

    def token_loss(self, student, teacher):
        return ((teacher.exp() - student.exp()) * (teacher - student)).sum(-1) / 2


class TakesAllArguments:
    def token_loss(self, student, teacher, labels, progress):
        return (1 + progress) * (teacher.exp() * (teacher - student)).sum(-1)


class WithoutEntropy:
    def token_loss(self, student, teacher):
        return -(teacher.exp() * student).sum(-1)


class LogOfSoftmax:
    def token_loss(self, student, teacher):
        p, q = teacher.exp(), student.exp()
        return (p * (p / q).log()).sum(-1)


class MeanOverTokens:
    def token_loss(self, student, teacher):
        return (teacher.exp() * (teacher - student)).sum(-1).mean()


class CentresByTheBatch:
    def token_loss(self, student, teacher):
        loss = (teacher.exp() * (teacher - student)).sum(-1)
        return loss - loss.mean() if len(loss) > 1 else loss


class WritesIntoTheTeacher:
    def token_loss(self, student, teacher):
        p = teacher.exp()
        loss = (p * (teacher - student)).sum(-1)
        teacher.zero_()
        return loss


class ScaleOnTheValueOnly:
    def token_loss(self, student, teacher):
        p, q = ((z / 2).log_softmax(-1) for z in (teacher, student))
        return 4 * (p.exp() * (p - q)).sum(-1)

    def token_gradient(self, student, teacher):
        p, q = ((z / 2).log_softmax(-1) for z in (teacher, student))
        return 4 * (p.exp() * (p - q)).sum(-1), (q.exp() - p.exp()) / 2


class GradientOfLogProbabilities:
    def token_loss(self, student, teacher):
        return (teacher.exp() * (teacher - student)).sum(-1)

    def token_gradient(self, student, teacher):
        return self.token_loss(student, teacher), -teacher.exp()


class StopsAGradient:
    def token_loss(self, student, teacher):
        weight = torch.sigmoid(teacher - student).detach()
        forward, reverse = teacher.exp() * (teacher - student), student.exp() * (student - teacher)
        return (weight * forward + (1 - weight) * reverse).sum(-1)


@pytest.mark.parametrize("loss", [Jeffreys(), TakesAllArguments()])
def test_right_losses_pass(loss):
    check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (WithoutEntropy(), "at student = teacher"),
        (LogOfSoftmax(), "not finite"),
        (MeanOverTokens(), "not \\[N\\]"),
        (CentresByTheBatch(), "one row at a time"),
        (WritesIntoTheTeacher(), "writes into `teacher`"),
        (ScaleOnTheValueOnly(), "gradient that token_gradient returns"),
        (GradientOfLogProbabilities(), "gradient that token_gradient returns"),
        (StopsAGradient(), "finite differences"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_faults_are_found(loss, word):
    with pytest.raises(AssertionError, match=word):
        check_loss(loss)


class StopsItOnPurpose(StopsAGradient):
    exempt: ClassVar = {"finite_differences": "the weights are constants"}


class Reward:
    """An option says what it is, so `exempt` is a property."""

    def __init__(self, sign):
        self.sign = sign

    @property
    def exempt(self):
        return {"not_negative": "the student is paid", "zero_where_equal": "for its entropy"} if self.sign < 0 else {}

    def token_loss(self, student, teacher):
        return -(student.exp() * -student).sum(-1) if self.sign < 0 else Jeffreys().token_loss(student, teacher)


@pytest.mark.parametrize("loss", [StopsItOnPurpose(), Reward(-1), Reward(1)])
def test_what_is_broken_on_purpose_can_be_declared(loss):
    check_loss(loss)


def test_only_what_may_be_broken_can_be_declared():
    loss = Jeffreys()
    loss.exempt = {"finite_diferences": "it is misspelt"}
    with pytest.raises(ValueError, match="did you mean `finite_differences`"):
        check_loss(loss)


def test_the_smallest_example_is_printed():
    with pytest.raises(AssertionError) as caught:
        check_loss(WithoutEntropy())
    assert "student=tensor([[0., 0.]])" in "".join(caught.value.__notes__)

"""Third-party plugins for the tests of `neoplug check`, correct and faulty."""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import hookimpl


@dataclass(eq=False)
class Jeffreys:
    """A correct loss."""

    scale: float = 1.0

    @hookimpl
    def token_loss(self, student, teacher):
        difference = teacher - student
        return self.scale * ((teacher.exp() - student.exp()) * difference).sum(-1) / 2


@dataclass(eq=False)
class Negative(Jeffreys):
    exempt: ClassVar = {"zero_where_equal": "for the test"}

    @hookimpl
    def token_loss(self, student, teacher):
        return -super().token_loss(student, teacher)


@dataclass(eq=False)
class Crashes:
    @hookimpl
    def token_loss(self, student, teacher):
        raise ZeroDivisionError(f"no mean of {len(student)}")


@dataclass(eq=False)
class Infinite:
    @hookimpl
    def token_loss(self, student, teacher):
        p, q = teacher.exp(), student.exp()
        return (p * (p / q).log()).sum(-1)


@dataclass(eq=False)
class Unmarked:
    def token_loss(self, student, teacher):
        return student

    @hookimpl
    def on_step(self, step):
        return step


@dataclass(eq=False)
class Idle:
    """Implements no hook."""


@dataclass(eq=False)
class GradientAlone:
    @hookimpl
    def token_gradient(self, student, teacher):
        return (teacher - student).sum(-1), student.exp() - teacher.exp()


@dataclass(eq=False)
class Weighted(Jeffreys):
    weight: float = 1.0


@dataclass(eq=False)
class Excused(Jeffreys):
    exempt: ClassVar = {"finit": "too hard"}


class Plain:
    """Not a dataclass."""


@dataclass(eq=False)
class WantsModel:
    """A loss that reads the model which another hook of it receives."""

    @hookimpl
    def after_load(self, model, role):
        self.model = model

    @hookimpl
    def token_loss(self, student):
        return student.sum(-1) * len(list(self.model.parameters()))


@dataclass(eq=False)
class Prints:
    """A tracker that prints."""

    @hookimpl
    def on_log(self, line):
        print("logged step", line["step"])

"""Losses with wrong answers."""

from dataclasses import dataclass

from neoplug import hookimpl


@dataclass(eq=False)
class Detached:
    """A loss without a gradient."""

    @hookimpl
    def token_loss(self, student, teacher):
        return (teacher.exp() * (teacher - student)).sum(-1).detach()


@dataclass(eq=False)
class OfNone:
    """A loss that returns nothing."""

    @hookimpl
    def token_loss(self, student):
        student.sum(-1)


@dataclass(eq=False)
class OfLists:
    """A loss that returns a list."""

    @hookimpl
    def token_loss(self, student):
        return student.sum(-1).tolist()


@dataclass(eq=False)
class OfFloats:
    """A loss that returns a number."""

    @hookimpl
    def token_loss(self, student):
        return student.sum().item()


@dataclass(eq=False)
class TooShort:
    """A loss that returns its mean."""

    @hookimpl
    def token_loss(self, student):
        return student.sum(-1).mean()


@dataclass(eq=False)
class Raising:
    """A loss with a bug."""

    @hookimpl
    def token_loss(self, student):
        return student.no_such_method()

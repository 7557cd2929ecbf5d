"""Plugins for the broken recipes: some valid, some with one mistake each. They need no torch."""

from dataclasses import dataclass
from typing import Literal

from neoplug import Problem, hookimpl


@dataclass(eq=False)
class Rank:
    """A valid adapter."""

    r: int = 8
    scale: float = 1.0
    side: Literal["left", "right"] = "left"
    layers: int | list[int] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"the rank must be positive: r is {self.r}, scale is {self.scale}")

    @hookimpl
    def add_adapter(self, model):
        return model


@dataclass(eq=False)
class Other:
    """A second adapter; it has a check."""

    bits: int = 4

    @hookimpl
    def add_adapter(self, model):
        return model

    @hookimpl
    def check(self, recipe):
        if recipe.student.dtype == "bfloat16":
            why, place = "it adds numbers that bfloat16 rounds away", ("student", "dtype")
            return [
                Problem("`Other` does not support bfloat16", why, "use float32", place),
                Problem("`Other` reports a second problem", path=("student", "load", "nothing", "here")),
            ]
        return []


@dataclass(eq=False)
class Labels:
    """A valid loss that needs no teacher."""

    @hookimpl
    def token_loss(self, student, labels):
        return student


@dataclass(eq=False)
class Divergence:
    """A valid loss that needs a teacher."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but must be above 0")

    @hookimpl
    def token_loss(self, student, teacher):
        return student


@dataclass(eq=False)
class Strict(Labels):
    """A loss whose `check` always returns a problem."""

    @hookimpl
    def check(self, recipe):
        return [Problem(f"`Strict` cannot be combined with {len(recipe.loss)} losses")]


@dataclass(eq=False)
class Stepper:
    """A valid optimizer."""

    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise ValueError(f"decay is {self.decay}, but weights should shrink")

    @hookimpl
    def make_optimizer(self, groups):
        return groups


@dataclass(eq=False)
class Groups:
    """A valid companion of an adapter."""

    @hookimpl
    def param_groups(self, model, learning_rate):
        return []


@dataclass(eq=False)
class Unmarked:
    @hookimpl
    def on_evaluate(self, model):
        return {}

    def on_train_end(self, model, result):
        return None


@dataclass(eq=False)
class Misspelt:
    @hookimpl
    def on_evaluate(self, model):
        return {}

    @hookimpl
    def on_step_ends(self, step):
        return {}


@dataclass(eq=False)
class Unknown:
    @hookimpl
    def on_evaluate(self, modle):
        return {}


@dataclass(eq=False)
class Defaulted:
    @hookimpl
    def on_evaluate(self, model, teacher=None):
        return {}


@dataclass(eq=False)
class Wrapper:
    @hookimpl(wrapper=True)
    def on_evaluate(self, model):
        return (yield)


@dataclass
class ByValue:
    @hookimpl
    def on_evaluate(self, model):
        return {}


class Plain:
    @hookimpl
    def on_evaluate(self, model):
        return {}


@dataclass(eq=False)
class Weighted:
    weight: float = 1.0

    @hookimpl
    def token_loss(self, student):
        return student


@dataclass(eq=False)
class Untyped:
    size: object = None
    shape: "NoSuchType" = None  # noqa: F821

    @hookimpl
    def on_evaluate(self, model):
        return {}


def function():
    return None

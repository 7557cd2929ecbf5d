"""Plugins of other kinds with wrong answers."""

from dataclasses import dataclass

import torch

from neoplug import hookimpl


@dataclass(eq=False)
class Negative:
    """Weights below 0."""

    @hookimpl
    def token_weight(self, student):
        return -torch.ones(len(student))


@dataclass(eq=False)
class WrongIds:
    """A treatment that writes tokens which no model has."""

    @hookimpl
    def edit_batch(self, batch):
        batch.labels = batch.labels + 10**6


@dataclass(eq=False)
class OfTensors:
    """A probe that returns a tensor where numbers belong."""

    @hookimpl
    def on_evaluate(self):
        return {"vector": torch.ones(3)}


@dataclass(eq=False)
class NoOptimizer:
    """An optimizer that is none."""

    @hookimpl
    def make_optimizer(self, groups):
        return list(groups)


@dataclass(eq=False)
class OddOptions:
    """An option that no recipe can hold."""

    weight_of_classes: torch.Tensor

    @hookimpl
    def token_weight(self, student):
        return torch.ones(len(student))


@dataclass(eq=False)
class Unmarked:
    """A hook without its marker."""

    def token_weight(self, student):
        return torch.ones(len(student))


@dataclass(eq=False)
class OtherArguments:
    """A hook with an argument that it does not have."""

    @hookimpl
    def token_weight(self, students):
        return torch.ones(len(students))

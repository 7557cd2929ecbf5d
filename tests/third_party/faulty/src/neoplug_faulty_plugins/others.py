"""Plugins of other kinds with wrong answers."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from neoplug import StatesSignal, hookimpl


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
class ReturnedBatch:
    """A treatment that returns another batch, as if it were read."""

    @hookimpl
    def edit_batch(self, batch):
        return replace(batch)


@dataclass(eq=False)
class WrongDocuments:
    """A treatment that leaves the teacher an answer token more than the student."""

    @hookimpl
    def edit_documents(self, documents):
        return [replace(each, teacher_ids=each.input_ids, teacher_loss_mask=~each.loss_mask) for each in documents]


@dataclass(eq=False)
class DetachedPenalty:
    """A penalty without a gradient."""

    @hookimpl
    def penalty(self):
        return torch.zeros(())


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
class OfRows:
    """A kind of cache that returns a list."""

    serves: ClassVar = "full"

    @hookimpl
    def encode_teacher(self, states):
        return list(states)

    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(torch.stack(stored), head)


@dataclass(eq=False)
class Unread:
    """A kind of cache that nothing decodes."""

    serves: ClassVar = "full"

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states}


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

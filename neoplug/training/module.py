"""The student with its objective as one module, and the gradient norm of each loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import Batch
from neoplug.distributed.world import World
from neoplug.errors import blaming
from neoplug.models.language_model import LanguageModel
from neoplug.registry import Plugins
from neoplug.teachers.base import Signal, Teacher
from neoplug.training.diagnostics import Diagnosis
from neoplug.training.objective import Loss, TokenWeights, objective


class Watched:
    """A token weight, and whether it gave one that is below 0 or infinite: on the device, for a flush to read.

    NaN does not count: a student with NaN logits makes any weight NaN.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.unsound: Tensor | bool = False

    def __call__(self, **arguments: Any) -> Tensor:
        """Return what it gives."""
        found = self.function(**arguments)
        if isinstance(found, Tensor):  # the caller refuses anything else
            self.unsound = self.unsound | ((found < 0) | found.isinf()).any()
        return found


class StudentWithObjective(nn.Module):
    """The student and its objective in one forward: a wrapper for several ranks sees the trainable parameters."""

    def __init__(self, student: LanguageModel, token_weights: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.module = student.module
        self.student = student
        self.token_weights = {name: Watched(function) for name, function in token_weights.items()}

    def unsound(self) -> dict[str, Tensor | bool]:
        """Return for each token weight whether it was ever below 0 or infinite."""
        return {name: weight.unsound for name, weight in self.token_weights.items()}

    def forward(
        self,
        losses: Sequence[Loss],
        batch: Batch,
        signal: Signal | None,
        progress: float,
        diagnosis: Diagnosis | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum over answer tokens, and [K, N] each loss of each token."""
        return self.score(losses, self.student.hidden(batch), batch, signal, progress, diagnosis)

    def score(
        self,
        losses: Sequence[Loss],
        hidden: Tensor,
        batch: Batch,
        signal: Signal | None,
        progress: float,
        diagnosis: Diagnosis | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the same of hidden states [N, H] that are at hand."""
        weights = None if batch.in_answer is None else TokenWeights(self.token_weights, batch.in_answer)
        return objective(losses, hidden, self.student.head, signal, batch.labels, progress, diagnosis, weights)


def gradient_norms(
    distillation: StudentWithObjective,
    teacher: Teacher | None,
    losses: Sequence[Loss],
    batches: Sequence[Batch],
    progress: float,
    world: World,
) -> Tensor:
    """Return [K] float32: each loss's gradient norm by all that trains, unweighted, per answer token of all ranks.

    batches  this rank's micro-batches of a step, as the treatments left them

    Costs a forward and K backwards, and holds K gradients. No `.grad` is touched, so a wrapper does not notice.
    """
    student = distillation.student
    alone = [replace(loss, weight=1.0) for loss in losses]
    trained = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
    sums = [[torch.zeros_like(parameter) for parameter in trained] for _ in losses]
    for batch in batches:
        signal = None if teacher is None else teacher.signal(batch)
        batch = batch.to(world.device)
        hidden = student.hidden(batch)
        for loss, sum_of in zip(alone, sums, strict=True):
            total, _ = distillation.score([loss], hidden, batch, signal, progress)
            found = torch.autograd.grad(total, trained, retain_graph=loss is not alone[-1], allow_unused=True)
            for gradient, part in zip(sum_of, found, strict=True):
                if part is not None:
                    gradient.add_(part)
    answers = world.sum(torch.tensor(sum(batch.answer_tokens for batch in batches)).to(world.device, non_blocking=True))
    norms = [torch.stack([world.sum(gradient).norm() for gradient in sum_of]).norm() for sum_of in sums]
    return torch.stack(norms) / answers.clamp(min=1)


@contextmanager
def remembering(plugins: Plugins) -> Iterator[None]:
    """Give plugins back, at the end, what they remember now: what is computed inside is no part of training."""
    stateful = {name: plugin for name, plugin in plugins.everyone().items() if hasattr(plugin, "state_dict")}
    kept = {}
    for name, plugin in stateful.items():
        with blaming(name, "state_dict"):
            kept[name] = deepcopy(plugin.state_dict())
    yield
    for name, state in kept.items():
        with blaming(name, "load_state_dict"):
            stateful[name].load_state_dict(state)

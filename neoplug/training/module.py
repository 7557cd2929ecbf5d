"""The student and its objective as one module, and the gradient norm of each loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from neoplug.data.batch import Batch
from neoplug.distributed.sharding import reshard, whole
from neoplug.distributed.world import World
from neoplug.errors import plugin_errors
from neoplug.models.language_model import LanguageModel
from neoplug.registry import Plugins
from neoplug.teachers.base import Signal, Teacher
from neoplug.training.diagnostics import Diagnosis
from neoplug.training.objective import Loss, TokenWeights, objective


class ValidatedTokenWeight:
    """A token weight that records on the device whether it returned a value below 0 or infinite.

    NaN is not recorded: any weight is NaN once the student's logits are.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.arguments: Sequence[str] = getattr(function, "arguments", ())  # that a plugin's hook takes
        self.invalid: Tensor | bool = False

    def __call__(self, **arguments: Any) -> Tensor:
        """Return the weights of the plugin, unchanged."""
        weight = self.function(**arguments)
        if isinstance(weight, Tensor):  # the caller refuses anything else
            self.invalid = self.invalid | ((weight < 0) | weight.isinf()).any()
        return weight


class StudentWithObjective(nn.Module):
    """The student and its objective in one forward, as wrappers for several ranks require it."""

    def __init__(self, student: LanguageModel, token_weights: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.module = student.module
        self.student = student
        self.token_weights = {name: ValidatedTokenWeight(function) for name, function in token_weights.items()}

    def invalid_weights(self) -> dict[str, Tensor | bool]:
        """Return for each token weight whether it ever returned a value below 0 or infinite."""
        return {name: weight.invalid for name, weight in self.token_weights.items()}

    def forward(
        self,
        losses: Sequence[Loss],
        batch: Batch,
        signal: Signal | None,
        progress: float,
        diagnosis: Diagnosis | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum over answer tokens, and each loss of each token, [K, N]."""
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
        """Return what `forward` returns, given the student's hidden states [N, H]."""
        weights = None if batch.in_answer is None else TokenWeights(self.token_weights, batch.in_answer)
        return objective(losses, hidden, self.student.head, signal, batch.labels, progress, diagnosis, weights)


def gradient_norms(
    module: StudentWithObjective,
    teacher: Teacher | None,
    losses: Sequence[Loss],
    batches: Sequence[Batch],
    progress: float,
    world: World,
) -> Tensor:
    """Return [K] float32: the norm of each loss's gradient by all trainable parameters, without the loss's weight.

    The loss is the mean over the answer tokens of all ranks.

    batches  this rank's micro-batches of a step, after all edits

    Takes one forward and K backwards per micro-batch, and memory for K gradients. `.grad` is not changed, and a wrapper
    for several ranks is not involved. Where trained weights are sharded, it takes K forwards, and `.grad` must be None.
    """
    student = module.student
    unweighted = [replace(loss, weight=1.0) for loss in losses]
    reshard(student.module)
    trained = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
    if any(isinstance(parameter, DTensor) for parameter in trained):
        return _norms_of_sharded(module, trained, teacher, unweighted, batches, progress, world)
    sums = [[torch.zeros_like(parameter) for parameter in trained] for _ in losses]
    for batch in batches:
        signal = None if teacher is None else teacher.signal(batch)
        batch = batch.to(world.device)
        hidden = student.hidden(batch)
        for loss, sum_of in zip(unweighted, sums, strict=True):
            total, _ = module.score([loss], hidden, batch, signal, progress)
            parts = torch.autograd.grad(total, trained, retain_graph=loss is not unweighted[-1], allow_unused=True)
            for gradient, part in zip(sum_of, parts, strict=True):
                if part is not None:
                    gradient.add_(part)
    answers = world.sum(torch.tensor(sum(batch.answer_tokens for batch in batches)).to(world.device, non_blocking=True))
    norms = [torch.stack([world.sum(gradient).norm() for gradient in sum_of]).norm() for sum_of in sums]
    return torch.stack(norms) / answers.clamp(min=1)


def _norms_of_sharded(
    module: StudentWithObjective, trained: Sequence[nn.Parameter], teacher: Teacher | None, losses: Sequence[Loss],
    batches: Sequence[Batch], progress: float, world: World,
) -> Tensor:  # fmt: skip
    """Return what `gradient_norms` returns: FSDP leaves the gradients in `.grad`, and `autograd.grad` finds none."""
    norms = []
    for loss in losses:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the same dropout for each loss
            for batch in batches:
                signal = None if teacher is None else teacher.signal(batch)
                total, _ = module([loss], batch.to(world.device), signal, progress)
                (total * world.size).backward()  # FSDP averages over ranks
        norms.append(whole(get_total_norm([weight.grad for weight in trained if weight.grad is not None])))
        for weight in trained:
            weight.grad = None
    answers = world.sum(torch.tensor(sum(batch.answer_tokens for batch in batches)).to(world.device, non_blocking=True))
    return torch.stack(norms) / answers.clamp(min=1)


@contextmanager
def plugin_state_restored(plugins: Plugins) -> Iterator[None]:
    """Restore the state dicts of all plugins on exit, so that calls in this context have no effect on training."""
    stateful = {name: plugin for name, plugin in plugins.instances().items() if hasattr(plugin, "state_dict")}
    states = {}
    for name, plugin in stateful.items():
        with plugin_errors(name, "state_dict"):
            states[name] = deepcopy(plugin.state_dict())
    yield
    for name, state in states.items():
        with plugin_errors(name, "load_state_dict"):
            stateful[name].load_state_dict(state)

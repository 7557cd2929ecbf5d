"""TAID of teacher p and student q: forward KL from a target that moves from near the student to the teacher.

    KL(r_t, q),  r_t = softmax((1 - t) z_q + t z_p);  0 at p = q, in nats per token
    z_q, z_p  logits over the temperature; no gradient runs through r_t, so the gradient is that of forward KL from r_t

t goes from `t_start` to `t_end`, never behind the straight line over progress, and ahead of it where the loss falls
fast: after each step, with its loss L,

    m <- beta m + (1 - beta) (L_before - L) / L_before,    t <- t + alpha sigmoid(m) (1 - t)

Convention: L is the KL, per answer token over all micro-batches and ranks, as the paper states it; the authors' code
takes the cross-entropy with r_t. alpha 0 leaves the straight line. t is logged as NAME_t, `taid_t`.
Source: TAID, arXiv 2501.16937; the defaults are its code's.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoplug import Softened, hookimpl
from neoplug_losses.forward_kl import ForwardKL

TINY = 1e-15  # keeps the relative change finite where the loss was 0, as in the authors' code


@dataclass(eq=False)
class TAID(Softened):
    """Temporally adaptive interpolated distillation."""

    exempt: ClassVar = {"finite_differences": "the target's share of the student is detached (TAID, arXiv 2501.16937)"}

    t_start: float = 0.4  # the teacher's share of the target at the first step, in [0, 1)
    t_end: float = 1.0  # at the last step, from t_start to 1
    alpha: float = 5e-4  # the largest step ahead of the straight line, in [0, 1]
    beta: float = 0.99  # momentum of the loss's relative change, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_start < 1:
            raise ValueError(f"t_start is {self.t_start}, but must lie in [0, 1); it is forward_kl with t at 1")
        if not max(self.t_start, TINY) <= self.t_end <= 1:
            raise ValueError(
                f"t_end is {self.t_end}, but must lie above 0 and from t_start to 1; it is forward_kl with t at 1"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but must lie in [0, 1]; at 0 t is linear in progress")
        if not 0 <= self.beta < 1:
            raise ValueError(
                f"beta is {self.beta}, but must lie in [0, 1); at 1 no change of the loss would have an effect"
            )
        self._kl = ForwardKL(self.temperature)
        self._t, self._momentum, self._before = torch.tensor([self.t_start, 0.0, inf]).unbind()

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor, progress: float) -> Tensor:
        """Return KL(r_t, q), [N], times T^2."""
        return self._kl.token_loss(student, self._target(student.detach(), teacher, progress))

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Return KL(r_t, q), [N], times T^2, and T (q - r_t), [N, V]."""
        return self._kl.token_gradient(student, self._target(student, teacher, progress))

    @hookimpl
    def on_step_end(self, progress: float, metrics: dict[str, Any], name: str) -> dict[str, Any]:
        """Update t on the device and return the t of this step. A step without answer tokens changes nothing."""
        loss, answers = metrics["losses"][name], metrics["counts"][0]
        t, momentum, before = (tensor.to(loss) for tensor in (self._at(progress), self._momentum, self._before))
        known = (answers > 0) & before.isfinite()
        change = (before - loss) / (before + TINY)
        moved = self.beta * momentum + (1 - self.beta) * change
        self._momentum = torch.where(known, moved, momentum)
        self._t = torch.where(known, t + self.alpha * moved.sigmoid() * (1 - t), t)
        self._before = torch.where(answers > 0, loss, before)
        return {f"{name}_t": t}

    def state_dict(self) -> dict[str, Tensor]:
        """Return t, the momentum and the last loss."""
        return {"t": self._t, "momentum": self._momentum, "before": self._before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a stored state."""
        self._t, self._momentum, self._before = state["t"], state["momentum"], state["before"]

    def _at(self, progress: float) -> Tensor:
        """Return t as updated so far, at least the straight line's value and at most `t_end`."""
        line = self.t_start + (self.t_end - self.t_start) * progress
        return self._t.clamp(line, self.t_end)

    def _target(self, log_q: Tensor, log_p: Tensor, progress: float) -> Tensor:
        """Return log r_t at temperature 1 as a fresh tensor [N, V]: the loss softens it with the rest."""
        between = torch.lerp(log_q, log_p, self._at(progress).to(log_q))
        return between.sub_(between.logsumexp(-1, keepdim=True))

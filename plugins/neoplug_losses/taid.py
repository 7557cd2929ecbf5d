"""TAID of teacher p and student q: forward KL from a target that moves from near the student to the teacher.

    KL(r_t, q),  r_t = softmax((1 - t) z_q + t z_p);  0 at p = q, in nats per token
    z_q, z_p  logits over the temperature; no gradient runs through r_t, so the gradient is that of forward KL from r_t

t rises from `t_start` to `t_end` at least linearly with progress, and faster where the loss falls fast: after each
step, with its loss L,

    m <- beta m + (1 - beta) (L_before - L) / L_before,    t <- t + alpha sigmoid(m) (1 - t)

Convention: L is the KL, per answer token over all micro-batches and ranks, as the paper states it; the authors' code
takes the cross-entropy with r_t. With alpha = 0, t is linear in progress. t is logged as NAME_t, `taid_t`.
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
    """Temporally adaptive interpolated distillation: KL from a target that moves from the student to the teacher."""

    exempt: ClassVar = {"finite_differences": "the target's share of the student is detached (TAID, arXiv 2501.16937)"}

    t_start: float = 0.4  # the teacher's share of the target at the first step, in [0, 1)
    t_end: float = 1.0  # at the last step, from t_start to 1
    alpha: float = 5e-4  # the largest share of 1 - t that one step adds to t, in [0, 1]
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
        self._t, self._momentum, self._last_loss = torch.tensor([self.t_start, 0.0, inf]).unbind()

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
        """Return the t of this step and compute the next, on the device; without answer tokens nothing changes."""
        loss, answers = metrics["losses"][name], metrics["counts"][0]
        stored = (self._t_at(progress), self._momentum, self._last_loss)
        t, momentum, last_loss = (tensor.to(loss, non_blocking=True) for tensor in stored)
        has_change = (answers > 0) & last_loss.isfinite()
        change = (last_loss - loss) / (last_loss + TINY)
        updated = self.beta * momentum + (1 - self.beta) * change
        self._momentum = torch.where(has_change, updated, momentum)
        self._t = torch.where(has_change, t + self.alpha * updated.sigmoid() * (1 - t), t)
        self._last_loss = torch.where(answers > 0, loss, last_loss)
        return {f"{name}_t": t}

    def state_dict(self) -> dict[str, Tensor]:
        """Return t, the momentum and the last loss."""
        return {"t": self._t, "momentum": self._momentum, "before": self._last_loss}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a stored state."""
        self._t, self._momentum, self._last_loss = state["t"], state["momentum"], state["before"]

    def _t_at(self, progress: float) -> Tensor:
        """Return the updated t, raised to its linear schedule and cut at `t_end`."""
        linear = self.t_start + (self.t_end - self.t_start) * progress
        return self._t.clamp(linear, self.t_end)

    def _target(self, log_q: Tensor, log_p: Tensor, progress: float) -> Tensor:
        """Return log r_t at temperature 1 as a new tensor [N, V]; forward KL softens it."""
        between = torch.lerp(log_q, log_p, self._t_at(progress).to(log_q, non_blocking=True))
        return between.sub_(between.logsumexp(-1, keepdim=True))

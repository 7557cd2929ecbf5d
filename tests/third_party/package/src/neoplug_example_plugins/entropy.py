"""Mean entropy of the student's predictions, in nats per answer token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from neoplug import hookimpl


@dataclass(eq=False)
class Entropy:
    """Mean entropy over held-out answer tokens."""

    @hookimpl
    def on_evaluate(
        self, model: torch.nn.Module, batches: Iterable[Any], predict: Callable[..., Any]
    ) -> dict[str, float | None]:
        """Return {nats}; None without answer tokens."""
        parts = [-(log_q.exp() * log_q).sum(-1) for batch in batches for log_q, _ in predict(model, batch)]
        return {"nats": torch.cat(parts).mean().item() if parts else None}

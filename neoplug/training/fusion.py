"""Whether a run computes its losses in one kernel: on a GPU with Triton, where the kernel agrees with their hooks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from neoplug.training.formula import formula_of
from neoplug.training.objective import Loss, differentiate_tile

logger = logging.getLogger(__name__)

ROWS = 8  # of the examples on which kernel and hooks are compared
AGREES = 1e-3  # the largest difference, relative to the value of a loss and to the largest gradient of a token
SMALL = 1e-5  # nats, and of a gradient: what is less may be rounding


def fuse(losses: Sequence[Loss], plugins: Mapping[str, Any], vocabulary: int, device: torch.device) -> list[Loss]:
    """Return the losses with their formulas if one kernel computes them on `device`; log whether it does, and why not.

    plugins     name -> the plugin of each loss
    vocabulary  size of the shared vocabulary
    """
    if device.type != "cuda" or not losses:
        return list(losses)
    fused = [replace(loss, formula=formula_of(plugins[loss.name])) for loss in losses]
    reason = _unfit(fused) or disagreement(losses, fused, vocabulary, device)
    if reason:
        logger.info("objective: tile by tile, since %s", reason)
        return list(losses)
    logger.info("objective: one kernel computes %s and their gradient", ", ".join(loss.name for loss in losses))
    return fused


def _unfit(losses: Sequence[Loss]) -> str | None:
    """Return why the kernel cannot compute these losses; None where it can."""
    if without := [loss.name for loss in losses if loss.formula is None]:
        return f"{', '.join(without)} has no formula"
    temperatures = {loss.formula.temperature for loss in losses if loss.formula and loss.formula.compares}
    if len(temperatures) > 1:
        return "the losses have several temperatures"
    return None if find_spec("triton") else "Triton is not installed"


def disagreement(losses: Sequence[Loss], fused: Sequence[Loss], vocabulary: int, device: torch.device) -> str | None:
    """Return how the kernel differs from the losses' hooks on examples, or why it cannot run; None if they agree."""
    student, teacher, labels = _examples(vocabulary, device)
    weights = torch.tensor([loss.weight for loss in losses], device=device)
    try:
        from neoplug.training.fused_tile import fused_tile  # imports Triton

        by_kernel = student.clone()
        found = fused_tile([loss.formula for loss in fused if loss.formula], by_kernel, teacher, labels, weights)
    except Exception as error:  # of a compiler, a driver or the device: whatever it is, tiles do without
        return f"the kernel does not run ({type(error).__name__}: {error})"
    for progress in (0.0, 1.0):
        by_hooks = student.clone()
        arguments = {"teacher": torch.log_softmax(teacher, -1), "labels": labels, "progress": progress}
        expected = differentiate_tile(losses, by_hooks, arguments)
        largest = by_hooks.abs().amax(-1, keepdim=True)
        for what, ours, theirs, size in (
            ("losses differ", found, expected, expected.abs()),
            ("gradient differs", by_kernel, by_hooks, largest),
        ):
            difference = float(((ours - theirs).abs() / (size + SMALL / AGREES)).max())
            if not difference <= AGREES:  # also where it is NaN
                return f"the kernel's {what} from the hooks by {difference:.2g} of the size"
    return None


def _examples(vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of student and teacher [ROWS, V] and labels [ROWS], of which half are likely tokens."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(ROWS, vocabulary, generator=rng) for _ in range(2))
    labels = torch.randint(vocabulary, (ROWS,), generator=rng)
    student[::2].scatter_(-1, labels[::2, None], 12.0)
    teacher[1::2] = student[1::2] + 0.1 * teacher[1::2]
    return student.to(device), teacher.to(device), labels.to(device)
